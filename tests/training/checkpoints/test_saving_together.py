"""Laws of checkpoints that many processes write: one step of all or none, while training goes on."""

import copy
import shutil
import threading
import time
from datetime import timedelta

import pytest
import torch
from torch import nn

from tests.training.checkpoints.parts import names
from tests.training.checkpoints.thread_group import COUNT, Group
from training.checkpoints import step_folders
from training.checkpoints.fragments import PART, Fragments
from training.checkpoints.slices import views
from training.engines.plain import PlainEngine
from training.stages import checkpointing
from training.stages.checkpointing import StageCheckpoints


def wait_until(happens):
    deadline = time.monotonic() + 15
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def hold_writing(monkeypatch):
    """Lets a process write its part only once the event is set that this returns."""
    events = []

    def hold(rank):
        write, may_write = checkpointing.write_part, threading.Event()
        events.append(may_write)

        def held(path, fragments):
            assert path.name != PART.format(rank=rank) or may_write.wait(60)
            return write(path, fragments)

        monkeypatch.setattr(checkpointing, "write_part", held)
        return may_write

    yield hold
    for event in events:
        event.set()


def assert_is_committed(folder, step, world_size=2):
    step_folders.verify_step(folder / f"step_{step}")
    saved = Fragments(folder / f"step_{step}").whole("weight", "matrix", (world_size * COUNT,))
    assert torch.equal(saved, torch.full((world_size * COUNT,), float(step)))


def test_what_is_learned_while_a_step_is_written_does_not_leak_into_it(hold_writing, tmp_path):
    module = nn.Linear(32, 32)
    engine = PlainEngine(torch.device("cpu"), "no", 1.0, timedelta(seconds=60))
    engine.prepare(
        module,
        list(module.named_parameters()),
        lambda named: torch.optim.AdamW([p for _, p in named], lr=0.1),
    )

    def learn():
        engine.backward(engine.forward(torch.randn(4, 32)).square().mean(), is_last=True)
        engine.update()

    learn()
    at_saving = copy.deepcopy(engine.flats())
    checkpoints, may_write = StageCheckpoints(engine, tmp_path, keep=2), hold_writing(rank=0)
    checkpoints.save(1, engine.flats(), {})
    learn()
    may_write.set()
    assert not checkpoints.finish()

    saved = Fragments(tmp_path / "step_1")
    pairs = zip(views(engine.slices(), at_saving), views(engine.slices(), engine.flats()), strict=True)
    for (kind, part, then), (_, _, now) in pairs:
        assert torch.equal(saved.whole(kind, part.name, (part.count,)), then)
        assert not torch.equal(now, then)
    assert set(at_saving) == {"weight", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("late", [0, 1])
def test_nothing_is_committed_until_all_processes_have_written(late, hold_writing, tmp_path):
    group, may_write = Group(tmp_path), hold_writing(late)
    group.save(1)
    wait_until(lambda: group.checkpoints[1 - late].status() == (True, False))

    group.settle()
    assert names(tmp_path) == ["step_1.tmp"]
    assert not (tmp_path / "step_1.tmp/COMPLETE").exists()

    may_write.set()
    assert group.finish() == [False, False]
    assert names(tmp_path) == ["step_1"]
    assert_is_committed(tmp_path, 1)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_part_that_one_process_could_not_write_leaves_the_step_before(broken, monkeypatch, tmp_path):
    group, write = Group(tmp_path), checkpointing.write_part
    group.save(1)
    group.finish()

    def fail(path, fragments):
        if path.name == PART.format(rank=broken):
            raise OSError("No space left on device")
        return write(path, fragments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "write_part", fail)
        group.save(2)
        assert group.finish() == [True, True]
    assert names(tmp_path) == ["step_1"]
    assert_is_committed(tmp_path, 1)

    group.save(3)
    assert group.finish() == [False, False]
    assert_is_committed(tmp_path, 3)


@pytest.mark.parametrize("does", ["commits", "gives up"])
def test_processes_exchange_signs_of_life_while_the_first_one_commits_or_gives_up(
    does, monkeypatch, tmp_path
):
    """Old steps are as large as the new one: to delete them takes longer than a collective may."""
    group = Group(tmp_path)

    def slowly(work):
        def slow(*args, **options):
            began = group.num_collectives
            wait_until(lambda: group.num_collectives > began + 2)
            return work(*args, **options)

        return slow

    def fail(*_):
        raise OSError("No space left on device")

    if does == "commits":
        monkeypatch.setattr(step_folders, "commit", slowly(step_folders.commit))
    else:
        monkeypatch.setattr(checkpointing, "write_part", fail)
        monkeypatch.setattr(shutil, "rmtree", slowly(shutil.rmtree))
    group.save(1)

    assert group.finish() == [does != "commits"] * 2
    assert names(tmp_path) == (["step_1"] if does == "commits" else [])
