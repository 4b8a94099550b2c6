"""What the training loop saves and costs, with a middle-sized model on the CPU: freezing, checkpoints,
processes.

python -m bench.train --out train.json

Times the Trainer's own step, in pairs side by side: of each stage against the same step with everything
learning, with a checkpoint being written against without, and by one process against two with half of the
batch each. Then, as `bench.train_data` does by itself, packing, cached codes and the loader.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.gpu_training import ROWS, SyntheticRows, samples_of_row
from bench.timing import machine, positive_int, report
from bench.train_data import (
    PACKED_SAMPLES,
    TIMED_STEPS,
    measure_codes_and_loader,
    measure_packing,
    middle_config,
)
from model.config import VargptConfig
from model.modeling import VargptForConditionalGeneration
from training.engines.make import make_engine
from training.params import Params, load_params
from training.planning.workload import sample_of
from training.stages.stage_table import STAGES, Stage, freeze_for, stage_named
from training.stages.trainer import Trainer

PARAMS = Path(__file__).parents[1] / "params.yaml"
WARM_UP = 2
# How often two ways of training take turns: what else the machine does for a while slows both.
ROUNDS = 3
ROW_TOKENS = 768
# Steps between two checkpoints of stage 2 at 7b, and its seconds there (`vargpt plan`, eight H100).
REAL_INTERVAL_SECONDS = 500 * 2.51


def trainer_of(
    config: VargptConfig, params: Params, stage: Stage, everything: bool, world_size: int, folder: Path
) -> Trainer:
    """A Trainer on synthetic rows; `everything` learns but for vision tower and image tokenizer."""
    recipe = getattr(params, stage.name)
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(config)
    model.visual_decoder.initialize()
    learning = freeze_for(model, STAGES["joint"] if everything else stage)
    sample = sample_of(recipe.mixture)
    count = samples_of_row(config, sample, ROW_TOKENS) // world_size
    rows = SyntheticRows(model, sample, max(count, 1), encodes=True)
    return Trainer(make_engine(recipe, params), model, learning, rows, recipe, params, folder, lambda: False)


def params_of(stage: str, steps: int, checkpoint_every: int) -> Params:
    """The recipe of tiny without what is not measured here."""
    params = load_params(PARAMS, "smoke")
    changes = {
        "steps": steps,
        "checkpoint_every": checkpoint_every,
        "muon_lr": 0.0,
        "ema": 0.0,
        "batch": ROWS,
    }
    recipe = getattr(params, stage).model_copy(update=changes)
    return params.model_copy(update={stage: recipe})


def step_seconds(trainer: Trainer) -> list[float]:
    """Seconds of every step after the first ones."""
    seconds: list[float] = []
    trainer.run(0, lambda step: seconds.append(step.seconds), dict)
    return seconds[WARM_UP:]


def measure_freezing(config: VargptConfig, repeats: int) -> dict[str, Any]:
    """Of each stage: median step over that with everything learning, trained in turns."""
    found: dict[str, Any] = {}
    for name in ("stage1", "stage2", "stage3"):
        steps = WARM_UP + -(-repeats // ROUNDS)
        params = params_of(name, steps, steps + 1)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for everything in (False, True) * ROUNDS:
            with TemporaryDirectory() as folder:
                trainer = trainer_of(config, params, stage_named(name), everything, 1, Path(folder))
                seconds[everything] += step_seconds(trainer)
        own, all_learn = (statistics.median(seconds[everything]) for everything in (False, True))
        found[name] = {"step_s": own, "everything_learns_s": all_learn, "ratio": own / all_learn}
    return found


def measure_checkpoints(config: VargptConfig, repeats: int) -> dict[str, Any]:
    """What steps take longer while a checkpoint is written after each second one, and what they wait for."""
    with TemporaryDirectory() as folder:
        plain_params = params_of("stage2", WARM_UP + repeats, WARM_UP + repeats + 1)
        plain = trainer_of(config, plain_params, stage_named("stage2"), False, 1, Path(folder) / "plain")
        without = statistics.median(step_seconds(plain))
        saving_params = params_of("stage2", WARM_UP + repeats, 2)
        saving = trainer_of(config, saving_params, stage_named("stage2"), False, 1, Path(folder) / "saving")
        began = time.monotonic()
        during = step_seconds(saving)
        whole = time.monotonic() - began
        written = saving.checkpoints
        stall = written.stall_seconds
    return {
        "step_s": without,
        "step_s_while_writing": statistics.median(during),
        "bytes": written.num_bytes,
        "stall_s": stall,
        "write_s": written.write_seconds,
        "run_s_with_all_checkpoints": whole,
        "stall_share_of_real_interval": stall * _real_bytes_ratio(written.num_bytes) / REAL_INTERVAL_SECONDS,
    }


def _real_bytes_ratio(num_bytes: int) -> float:
    """How many times as much a process of eight copies in stage 2 at 7b: 81.1 GB among eight."""
    return 81.1e9 / 8 / num_bytes


def measure_processes(repeats: int) -> dict[str, Any]:
    """Median step of one process, and of two that share its samples, each with one thread."""
    found: dict[str, Any] = {}
    for world_size in (1, 2):
        found[f"processes_{world_size}_step_s"] = _group(world_size, repeats)
    found["speedup"] = found["processes_1_step_s"] / found["processes_2_step_s"]
    return found


def _group(world_size: int, repeats: int) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "bench.train", "--one-of", str(world_size), "--repeats", str(repeats)]
    group = []
    for rank in range(world_size):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        group.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in group]
    return float(json.loads(outputs[0].splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description="Time the training loop.")
    parser.add_argument("--repeats", type=positive_int, default=8)
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: after the table")
    parser.add_argument("--one-of", type=positive_int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = middle_config()
    if options.one_of:
        params = params_of("stage3", WARM_UP + options.repeats, WARM_UP + options.repeats + 1)
        with TemporaryDirectory() as folder:
            trainer = trainer_of(config, params, stage_named("stage3"), False, options.one_of, Path(folder))
            seconds = step_seconds(trainer)
        if trainer.engine.is_main:
            sys.stdout.write(json.dumps(statistics.median(seconds)) + "\n")
        return
    measured = {
        "machine": machine("cpu"),
        "freezing": measure_freezing(config, options.repeats),
        "checkpoints": measure_checkpoints(config, options.repeats),
        "processes": measure_processes(options.repeats),
        "packing": measure_packing(PACKED_SAMPLES),
    }
    with TemporaryDirectory() as folder:
        measured["codes"] = measure_codes_and_loader(Path(folder), TIMED_STEPS)
    report(measured, options.out)


if __name__ == "__main__":
    main()
