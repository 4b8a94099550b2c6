"""Experiment tracking: metrics, pictures and artifacts of a run, kept in files until MLflow has them.

Training never waits for MLflow and never fails because of it. `tracker` is what training calls; `spool` the
files between (append-only journals); `sender` the thread that sends them, less and less often while MLflow is
away; `mlflow_run` connects, with short timeouts, and writes what they hold to an MLflow run. `exporter`
tells Prometheus the same. `progress` shows steps on a terminal, `sample_sheet` draws the pictures of a run.

Door:
    exporter: MetricsExporter
    tracker: EXPERIMENT, LOG_EVERY, Tracker, open_tracker
    sample_sheet: sample_sheet
    progress: ProgressLine, ProgressLines, progress_line, progress_lines
    sender: sync_spools
    mlflow_run: STAGE_TAG, connect, create_registered_model, find_run, outage_errors
May import: no other room
"""
