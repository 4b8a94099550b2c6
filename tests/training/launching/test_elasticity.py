"""Laws of an elastic group, with real launchers: it goes on with fewer nodes, and takes new ones in."""

import time
from pathlib import Path

import pytest

from tests.training.launching.operator_settings import of_another_node, operator_variables

pytestmark = pytest.mark.slow

# Processes that count together, go on from the last checkpoint, and save when they are asked to stop.
CHILD = """
import argparse, os, signal, sys, time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from training.launching.heartbeats import HeartbeatWriter
from training.parent_death import die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("stage")
parser.add_argument("--outputs", type=Path)
parser.add_argument("--steps", type=int)
parser.add_argument("--alone", type=float, default=0.05)
parser.add_argument("--saving", type=float, default=0.0)
options = parser.parse_args()
die_with_parent(int(os.environ["VARGPT_LAUNCHER_PID"]))
heartbeat = HeartbeatWriter.started()
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
distributed.init_process_group("gloo", timeout=timedelta(minutes=10))
rank, world = distributed.get_rank(), distributed.get_world_size()
work = options.outputs / options.stage / "work"


def save(step):
    if rank == 0:
        (work / f"step_{step}").mkdir(parents=True, exist_ok=True)
        (work / f"step_{step}" / "COMPLETE").touch()


first = max((int(path.parent.name[5:]) for path in work.glob("step_*/COMPLETE")), default=0)
for step in range(first, options.steps):
    heartbeat.step()
    flag = torch.tensor([float(len(asked))])
    distributed.all_reduce(flag)
    if flag:
        time.sleep(options.saving)
        save(step)
        sys.exit(143)
    if rank == 0:
        with Path(options.outputs, "steps").open("a") as steps:
            steps.write(f"{step} {world}\\n")
    time.sleep(options.alone if world == 1 else 0.05)
    if (step + 1) % 10 == 0:
        save(step + 1)
heartbeat.trained()
distributed.barrier()
heartbeat.done()
"""


@pytest.fixture(autouse=True)
def _program(tmp_path):
    (tmp_path / "counting.py").write_text(CHILD)
    (tmp_path / "outputs").mkdir()


def steps_in(outputs: Path) -> list[tuple[int, int]]:
    """Every step that was done, in order, with the number of processes that did it."""
    path = outputs / "steps"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [tuple(int(part) for part in line.split()) for line in lines]


def wait_for_steps(outputs: Path, count: int, seconds: float = 240) -> None:
    """Waits until so many steps were done."""
    until = time.monotonic() + seconds
    while len(steps_in(outputs)) < count:
        assert time.monotonic() < until, f"{len(steps_in(outputs))} of {count} steps after {seconds} s"
        time.sleep(0.05)


def test_a_group_goes_on_with_the_node_that_is_left_from_the_last_checkpoint(start, tmp_path):
    outputs, variables = tmp_path / "outputs", operator_variables(2, least=1)
    arguments = ("--module", "counting", "stage1", "--steps", "100")
    host = start(*arguments, **variables)
    other = start(*arguments, **of_another_node(variables))
    wait_for_steps(outputs, 15)

    other.kill()
    killed = time.monotonic()
    assert host.wait(timeout=60) == 138
    done = steps_in(outputs)
    # What the operator does after such an exit code; the other node has nowhere to run.
    host = start(*arguments, **variables)
    wait_for_steps(outputs, len(done) + 1)

    assert time.monotonic() - killed < 60
    assert host.wait(timeout=120) == 0
    alone = steps_in(outputs)[len(done) :]
    assert {world for _, world in done} == {2} and {world for _, world in alone} == {1}
    saved = done[-1][0] // 10 * 10
    assert [step for step, _ in alone] == list(range(saved, 100))


def test_a_group_takes_in_a_node_that_comes_later_and_repeats_no_step(start, tmp_path):
    outputs, variables = tmp_path / "outputs", operator_variables(2, least=1)
    arguments = ("--module", "counting", "stage1", "--steps", "300", "--alone", "0.4")
    # Longer than torch's own agent would wait.
    arguments += ("--saving", "33")
    host = start(*arguments, **variables)
    wait_for_steps(outputs, 5)

    other = start(*arguments, **of_another_node(variables))

    said = [node.communicate(timeout=240)[1] for node in (host, other)]
    assert [host.returncode, other.returncode] == [0, 0], said
    steps = steps_in(outputs)
    assert [step for step, _ in steps] == list(range(300))
    worlds = [world for _, world in steps]
    assert worlds == sorted(worlds) and set(worlds) == {1, 2}
