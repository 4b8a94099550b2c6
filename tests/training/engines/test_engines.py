"""Laws of engines: whatever processes share, and however many they are, the same is learned from the same
samples.

All parts of a tiny model learn here, from understanding, drawing, both in one conversation, and text alone,
in float32 over gloo.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from model.config import preset
from tests.training.engines.train_mixed import VICTIMS, has_drawing, options_of, recipe_of
from tests.training.volume import ROOT
from training.checkpoints.fragments import Fragments
from training.checkpoints.step_folders import committed_steps, num_bytes
from training.planning.memory import checkpoint_bytes, sizes_of
from training.stages.stage_table import stage_named

ENGINES = ("ddp", "zero1", "zero2", "zero3")
NUM_STEPS = 20
TOLERANCE = 1e-5
LORA = ("--lora", "--steps", "6")


def start(folder, engine, world_size, *options):
    """Start a group of processes that train in this folder."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = []
    for rank in map(str, range(world_size)):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(world_size)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [
            sys.executable,
            "-m",
            "tests.training.engines.train_mixed",
            str(folder),
            "--engine",
            engine,
        ]
        with (folder / f"log.{rank}").open("w") as log:
            group.append(
                subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
    return group


def finish(folder, group):
    codes = [process.wait(timeout=600) for process in group]
    assert codes == [0] * len(group), "".join(
        path.read_text()[-2000:] for path in sorted(folder.glob("log.*"))
    )


def train(folder, engine, world_size, *options):
    finish(folder, start(folder, engine, world_size, *options))
    return steps_of(folder)


def steps_of(folder):
    records = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return {record["step"]: record for record in records}


def largest_difference(steps, expected):
    assert steps.keys() == expected.keys()
    for step, record in steps.items():
        assert (
            record["records"] == expected[step]["records"]
            and record["losses"].keys() == expected[step]["losses"].keys()
        )
    return max(
        abs(record["losses"][name] - expected[step]["losses"][name])
        for step, record in steps.items()
        for name in record["losses"]
    )


def state_of(folder):
    """All that the newest checkpoint keeps, by kind and parameter, whole."""
    fragments = Fragments(committed_steps(folder / "steps")[0])
    sizes = fragments.sizes
    return {(kind, name): fragments.whole(kind, name, (size,)) for (kind, name), size in sizes.items()}


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of a group that nothing disturbs, made once for each engine, number of processes and options."""
    made = {}

    def folder_of(*group):
        if group not in made:
            made[group] = tmp_path_factory.mktemp(f"{group[0]}-{group[1]}")
            train(made[group], *group)
        return made[group]

    return folder_of


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_two_processes_that_share_state_have_the_losses_of_one_that_has_all(engine, tmp_path):
    alone = train(tmp_path / "alone", "ddp", 1, "--steps", "6")
    shared = train(tmp_path / "shared", engine, 2, "--steps", "6")
    assert largest_difference(shared, alone) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage3"])
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_samples_without_drawings_on_one_process_hang_no_stage(engine, stage, undisturbed, tmp_path):
    options = ("--stage", stage, "--steps", "6", "--batch", "2")
    shared = train(tmp_path, engine, 2, *options)
    assert any(sum(map(has_drawing, record["records"])) == 1 for record in shared.values())
    assert largest_difference(shared, steps_of(undisturbed("ddp", 1, *options))) < TOLERANCE


@pytest.mark.engines
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_the_same_losses_with_any_number_of_processes(engine, world_size, undisturbed):
    expected = steps_of(undisturbed("ddp", 1))
    assert len(expected) == NUM_STEPS
    assert largest_difference(steps_of(undisturbed(engine, world_size)), expected) < TOLERANCE


@pytest.mark.engines
@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_killed_at_any_moment_changes_no_bit_of_the_end(engine, undisturbed, tmp_path):
    for victim, step in ((1, 7), (0, 12)):
        group = start(tmp_path, engine, 2)
        deadline = time.monotonic() + 300
        while not (tmp_path / "steps.jsonl").exists() or max(steps_of(tmp_path), default=0) < step:
            assert time.monotonic() < deadline and group[victim].poll() is None
            time.sleep(0.01)
        group[victim].send_signal(signal.SIGKILL)
        group[1 - victim].kill()
        for process in group:
            process.wait()
    train(tmp_path, engine, 2)
    assert are_equal(state_of(tmp_path), state_of(undisturbed(engine, 2)))


@pytest.mark.engines
@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_killed_while_it_saves_changes_no_bit_of_the_end(engine, undisturbed, tmp_path):
    for where, step, before in (("part", 10, 5), ("marker", 15, 10)):
        group = start(tmp_path, engine, 2, "--die-in", where, "--die-at", str(step))
        assert group[VICTIMS[where]].wait(timeout=600) == -signal.SIGKILL
        group[1 - VICTIMS[where]].kill()
        group[1 - VICTIMS[where]].wait()
        assert (tmp_path / f"steps/step_{step}.tmp/part_00001.safetensors").exists()
        assert committed_steps(tmp_path / "steps")[0].name == f"step_{before}"
    train(tmp_path, engine, 2)
    assert are_equal(state_of(tmp_path), state_of(undisturbed(engine, 2)))


@pytest.mark.engines
@pytest.mark.parametrize("group", [("ddp", 1), *((engine, 2) for engine in ENGINES), ("zero2", 2, *LORA)])
def test_a_checkpoint_has_as_many_bytes_as_planned(group, undisturbed):
    folder, (_, _, *options) = undisturbed(*group), group
    _, recipe = recipe_of(options_of([str(folder), *options]))
    sizes = sizes_of(preset("tiny"), stage_named("joint").trains, recipe)
    on_disk = num_bytes(committed_steps(folder / "steps")[0])
    assert on_disk == pytest.approx(checkpoint_bytes(sizes, recipe), rel=0.02)


@pytest.mark.engines
@pytest.mark.parametrize("group", [("ddp", 1), ("zero2", 2), ("zero3", 2)])
def test_adapters_learn_the_same_under_every_engine_and_go_on_bit_for_bit(group, undisturbed, tmp_path):
    whole = undisturbed(*group, *LORA)
    alone = steps_of(undisturbed("ddp", 1, *LORA))
    assert largest_difference(steps_of(whole), alone) < TOLERANCE
    train(tmp_path, *group, *LORA, "--stop-after", "3")
    train(tmp_path, *group, *LORA)
    assert any(".lora_" in name for _, name in state_of(tmp_path))
    assert are_equal(state_of(tmp_path), state_of(whole))


@pytest.mark.engines
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("zero2", 2), ("zero2", 1)),
        (("zero2", 2), ("zero2", 4)),
        (("zero2", 2), ("ddp", 1)),
        (("ddp", 1), ("zero3", 2)),
        (("zero3", 2), ("zero1", 1)),
    ],
)
def test_another_engine_or_number_of_processes_goes_on_with_the_same_samples_and_losses(
    first, then, undisturbed, tmp_path
):
    train(tmp_path, *first, "--stop-after", "8")
    train(tmp_path, *then)
    assert largest_difference(steps_of(tmp_path), steps_of(undisturbed("ddp", 1))) < TOLERANCE


@pytest.mark.engines
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_optimizer_states_in_host_memory_change_nothing(engine, undisturbed, tmp_path):
    offloaded = train(tmp_path, engine, 2, "--offload")
    assert largest_difference(offloaded, steps_of(undisturbed("ddp", 1))) < TOLERANCE


@pytest.mark.engines
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_activations_that_are_computed_again_change_nothing(engine, undisturbed, tmp_path):
    recomputed = train(tmp_path, engine, 1, "--checkpoint-activations")
    assert largest_difference(recomputed, steps_of(undisturbed("ddp", 1))) < TOLERANCE


@pytest.mark.engines
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_bfloat16_learns_with_float32_weights_beside(engine, undisturbed, tmp_path):
    rounded = train(tmp_path, engine, 1, "--precision", "bf16")
    exact = steps_of(undisturbed("ddp", 1))
    assert largest_difference(rounded, exact) < 0.1
    weights = {key: value for key, value in state_of(tmp_path).items() if key[0] == "weight"}
    assert any((value.bfloat16().float() != value).any() for value in weights.values())


@pytest.mark.engines
def test_a_checkpoint_whose_part_is_missing_is_not_gone_on_from(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed("zero2", 2), folder)
    newest = committed_steps(folder / "steps")[0]
    (newest / "part_00001.safetensors").unlink()
    train(folder, "zero2", 2)
    assert (folder / "log.0").read_text().count("is damaged and was renamed") == 1
    assert are_equal(state_of(folder), state_of(undisturbed("zero2", 2)))
