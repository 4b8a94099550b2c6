"""What a run tells: to a spool on disk first, from there to MLflow; and progress for who watches.

Training never waits for MLflow and never fails because of it.

Door:
    tracker: EXPERIMENT, LOG_EVERY, Tracker, open_tracker
    sample_sheet: sample_sheet
    progress: ProgressLine, progress_line
    sender: sync_spools
    mlflow_run: connect, find_run, outage_errors
May import: no other room
"""
