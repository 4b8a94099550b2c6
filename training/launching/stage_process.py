"""One training process of a stage: `python -m training.launching.stage_process STAGE`.

Exit codes: 0 done, 2 the user's mistake, 138 a disk or a network failed, 143 stopped by a signal after
saving, 1 an uncaught exception.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.launching.exit_codes import DONE, PERMANENT_FAILURE, RETRYABLE_FAILURE, STOPPED
from training.launching.heartbeats import HeartbeatWriter
from training.parent_death import die_with_parent

if TYPE_CHECKING:
    from training.run_context import ImageFacts
    from training.tracking.exporter import MetricsExporter

# Not __name__, which is __main__ here.
logger = logging.getLogger("training.launching.stage_process")

LOCAL_MLFLOW = "sqlite:///mlflow.db"
# Environment variable with the process id of the launcher, with which its training processes end.
LAUNCHER_PID = "VARGPT_LAUNCHER_PID"
# On which Prometheus is answered, by the first process of a node; none: nowhere.
METRICS_PORT = "VARGPT_METRICS_PORT"
# torchrun's variables with the rank of this process and the number of processes of its node; without it one.
LOCAL_RANKS = (("RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
# Set by our images, but for the name, which only the manifest of the job knows.
GIT_COMMIT, GIT_DIRTY, IMAGE = "GIT_COMMIT", "GIT_DIRTY", "VARGPT_IMAGE"
# Of an image that was built without these build arguments.
UNKNOWN = "unknown"


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The stage and the folders of this process."""
    parser = argparse.ArgumentParser(
        prog="python -m training.launching.stage_process", description="Train one stage."
    )
    parser.add_argument("stage", help="backbones, stage1, stage2, stage3 or joint")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the parameters")
    parser.add_argument("--size", help="tiny, smoke or 7b; default: what the parameters say")
    parser.add_argument("--prepared", type=Path, default=Path("prepared"), help="folder of prepared data")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of results")
    parser.add_argument("--data-pointer", type=Path, help="default: data.dvc beside the parameters")
    parser.add_argument("--tracking-uri", help="where MLflow is; default: a file in the working directory")
    return parser.parse_args(arguments)


def train(
    options: argparse.Namespace, should_stop: Callable[[], bool], on_trained: Callable[[], None]
) -> None:
    """Run a stage until it is done or should stop. Raises what `run_stage` and `run_backbones` raise."""
    from training.precision import training_device

    # Else DeepSpeed, where it is installed, warns on every start that it has found no GPU.
    if training_device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    from training.params import load_params
    from training.registry.stage_folders import StageFolders
    from training.run_context import RunContext
    from training.stages.run import run_stage

    disable_progress_bar()
    params = load_params(options.params, options.size)
    pointer = options.data_pointer or options.params.parent / "data.dvc"
    folders = StageFolders(options.stage, options.prepared, options.outputs, pointer)
    context = RunContext(
        tracking_uri=options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", LOCAL_MLFLOW),
        spool=options.outputs.parent / "spool",
        image=image_facts(os.environ),
        should_stop=should_stop,
        exporter=metrics_exporter(options.stage, folders.folder, os.environ),
        on_trained=on_trained,
    )
    if options.stage == "backbones":
        from training.backbones.run import run_backbones

        run_backbones(params, folders, context)
    else:
        run_stage(options.stage, params, folders, context)


def image_facts(environment: Mapping[str, str]) -> "ImageFacts":
    """What the container image tells of itself."""
    from training.run_context import ImageFacts

    commit, is_dirty, name = (environment.get(key, UNKNOWN) for key in (GIT_COMMIT, GIT_DIRTY, IMAGE))
    return ImageFacts(
        commit=None if commit == UNKNOWN else commit,
        is_dirty={"true": True, "false": False}.get(is_dirty),
        name=None if name == UNKNOWN else name,
    )


def metrics_exporter(stage: str, folder: Path, environment: Mapping[str, str]) -> "MetricsExporter | None":
    """What answers Prometheus, where a port is given and this is its node's first process."""
    port = environment.get(METRICS_PORT)
    if not port or environment.get("LOCAL_RANK", "0") != "0":
        return None
    from model.errors import UserError
    from training.tracking.exporter import MetricsExporter

    if not port.isdecimal():
        raise UserError(f"{METRICS_PORT} must be a port, got {port!r}")
    # Processes of a node have ranks one after another.
    first, count = (int(environment.get(name, default)) for name, default in LOCAL_RANKS)
    exporter = MetricsExporter(stage, folder, range(first, first + count))
    exporter.serve(int(port))
    return exporter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stage; the exit code, by the exception that ended it."""
    if launcher := os.environ.get(LAUNCHER_PID):
        die_with_parent(int(launcher))
    stop, heartbeat = threading.Event(), HeartbeatWriter.started()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    options = read_arguments(arguments)
    from model.errors import UserError
    from training.errors import Stopped

    def should_stop() -> bool:
        # Asked once before every step.
        if heartbeat:
            heartbeat.step()
        return stop.is_set()

    def on_trained() -> None:
        if heartbeat:
            heartbeat.trained()

    try:
        train(options, should_stop, on_trained)
    except UserError as error:
        logger.error("error: %s", error)
        return PERMANENT_FAILURE
    except OSError:
        logger.exception("a disk or a network failed; a later start goes on from the last checkpoint")
        return RETRYABLE_FAILURE
    except Stopped as stopped:
        logger.info("%s", stopped)
        return STOPPED
    if heartbeat:
        heartbeat.done()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
