"""Laws of the checkpoint store: saving is atomic, damage is detected, and the step before is used."""

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.checkpoints import store
from training.checkpoints.state_trees import flatten_state, unflatten_state
from training.checkpoints.step_folders import committed_steps
from training.checkpoints.store import SaveError, load_latest, load_step, newest_step, save_step

ROOT = Path(__file__).parents[3]


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(7, 5, generator=generator), "step": torch.tensor(step)}


def save_steps(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_step(folder, step, tensors_of(step), {"cursor": step * 8, "rate": 0.1 + 0.2}, keep=keep)


def assert_is_step(loaded: tuple | None, step: int) -> None:
    assert loaded is not None
    assert loaded[0] == step
    assert all(torch.equal(loaded[1][name], tensor) for name, tensor in tensors_of(step).items())
    assert loaded[2] == {"cursor": step * 8, "rate": 0.1 + 0.2}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_step_comes_back_bit_for_bit(tmp_path):
    save_steps(tmp_path, 9, 10)

    assert_is_step(load_latest(tmp_path), 10)


def test_an_absent_or_empty_folder_has_no_step(tmp_path):
    assert load_latest(tmp_path / "nowhere") is None
    assert load_latest(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    save_steps(tmp_path, 10, 20, 30, 100, keep=2)

    assert names(tmp_path) == ["step_100", "step_30"]


@pytest.mark.parametrize("keep", [3, 4, 5, 9])
def test_none_is_deleted_while_there_are_no_more_than_are_kept(tmp_path, keep):
    save_steps(tmp_path, 1, 2, 3, keep=keep)

    assert names(tmp_path) == ["step_1", "step_2", "step_3"]


def test_looking_at_steps_leaves_alone_one_that_is_being_written(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "step_2.tmp").mkdir()

    assert [path.name for path in committed_steps(tmp_path)] == ["step_1"]
    assert names(tmp_path) == ["step_1", "step_2.tmp"]


def test_the_step_just_saved_is_kept_even_beside_higher_ones(tmp_path):
    save_steps(tmp_path, 50, 60, 5, keep=1)

    assert names(tmp_path) == ["step_5"]


def test_a_step_saved_twice_holds_what_was_saved_last(tmp_path):
    save_step(tmp_path, 4, {"weight": torch.zeros(2)}, {})
    save_steps(tmp_path, 4)

    assert_is_step(load_latest(tmp_path), 4)
    assert names(tmp_path) == ["step_4"]


def test_a_replacement_that_was_cut_between_its_two_renames_loses_nothing(tmp_path):
    save_steps(tmp_path, 3, 4)
    (tmp_path / "step_4").rename(tmp_path / "step_4.old")

    assert_is_step(load_latest(tmp_path), 4)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json", "COMPLETE"])
@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda path: os.truncate(path, 3)])
def test_damage_to_any_file_is_named_and_the_step_before_is_used(tmp_path, caplog, name, damage):
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "step_2" / name)

    with caplog.at_level(logging.WARNING):
        loaded = load_latest(tmp_path)

    assert_is_step(loaded, 1)
    assert names(tmp_path) == ["step_1", "step_2.damaged"]
    assert "step_2 is damaged" in caplog.text
    assert name in caplog.text or "manifest" in caplog.text


def test_every_single_flipped_bit_is_detected(tmp_path):
    save_steps(tmp_path, 1)
    for path in sorted((tmp_path / "step_1").iterdir()):
        intact = path.read_bytes()
        for position in range(0, len(intact), 41):
            path.write_bytes(intact[:position] + bytes([intact[position] ^ 0x10]) + intact[position + 1 :])
            assert newest_step(tmp_path) is None, (path.name, position)
            (tmp_path / "step_1.damaged").rename(tmp_path / "step_1")
        path.write_bytes(intact)

    assert_is_step(load_latest(tmp_path), 1)


def test_a_file_that_the_manifest_does_not_list_makes_a_step_damaged(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step_2" / "model.safetensors").write_bytes(b"not ours")

    assert_is_step(load_latest(tmp_path), 1)


def test_a_second_damaged_copy_of_a_step_does_not_hide_the_first(tmp_path):
    for _ in range(2):
        save_steps(tmp_path, 1, 2)
        flip_a_bit(tmp_path / "step_2" / "state.json")
        newest_step(tmp_path)

    assert names(tmp_path) == ["step_1", "step_2.damaged", "step_2.damaged-2"]


def test_damaged_steps_are_removed_once_newer_ones_have_taken_over(tmp_path):
    save_steps(tmp_path, 1, 2)
    flip_a_bit(tmp_path / "step_2" / "state.json")
    newest_step(tmp_path)
    save_steps(tmp_path, 3, 4, keep=2)

    assert names(tmp_path) == ["step_3", "step_4"]


def test_a_half_written_step_is_renamed_and_logged(tmp_path, caplog):
    save_steps(tmp_path, 1)
    (tmp_path / "step_2.tmp").mkdir()
    (tmp_path / "step_2.tmp" / "tensors.safetensors").write_bytes(b"half")

    assert_is_step(load_latest(tmp_path), 1)

    assert "step_2.tmp" in caplog.text
    assert names(tmp_path) == ["step_1", "step_2.tmp.damaged"]


WRITER = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
from training.checkpoints.store import save_step

for step in range(1, 10_000):
    big = torch.full((250_000,), float(step))
    save_step(Path(sys.argv[1]), step, {"big": big}, {"step": step}, keep=2)
    print(step, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_step_that_loads(tmp_path):
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3):
            committed = int(writer.stdout.readline())
        time.sleep(0.003 * attempt)
        writer.send_signal(signal.SIGKILL)
        committed = max([committed, *(int(line) for line in writer.communicate()[0].split())])

        step, tensors, state = load_latest(tmp_path)

        assert step in (committed, committed + 1)
        assert state == {"step": step}
        assert torch.equal(tensors["big"], torch.full((250_000,), float(step)))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]).returncode:
        pytest.skip("a small file system can only be mounted as root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_a_save_error_and_leaves_the_step_before(small_disk):
    big = torch.ones(450_000)
    save_step(small_disk, 1, {"big": big}, {"step": 1})

    with pytest.raises(SaveError, match=r"step 2 could not .*No space left.*step 1 is still there"):
        save_step(small_disk, 2, {"big": big}, {"step": 2})

    assert names(small_disk) == ["step_1"]
    assert load_latest(small_disk)[0] == 1


def test_a_disk_that_fills_up_while_writing_leaves_the_step_before(small_disk, monkeypatch):
    save_step(small_disk, 1, {"small": torch.ones(10)}, {})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))

    with pytest.raises(SaveError, match="No space left"):
        save_step(small_disk, 2, {"big": torch.ones(1 << 20)}, {})

    assert names(small_disk) == ["step_1"]


def test_a_file_size_limit_is_a_save_error_like_a_full_disk(tmp_path):
    save_steps(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SaveError, match="File too large"):
            save_step(tmp_path, 2, {"big": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert_is_step(load_latest(tmp_path), 1)


@pytest.mark.parametrize("state", [{"pair": (1, 2)}, {"by_number": {1: 2}}, {"tensor": torch.ones(1)}])
def test_a_state_that_json_would_alter_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match=r"state of step 1, .*JSON would alter"):
        save_step(tmp_path, 1, {}, state)


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (1, 0)])
def test_impossible_numbers_are_refused_by_name(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"step={step}, keep={keep}"):
        save_step(tmp_path, step, {}, {}, keep=keep)


def test_a_step_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no step 7"):
        load_step(tmp_path, 7)


def test_tied_and_strided_tensors_come_back_with_their_values(tmp_path):
    base = torch.randn(4, 6)
    tied = {"a": base, "b": base, "column": base[:, 1], "turned": base.mT, "head": base[:2], "none": base[:0]}
    save_step(tmp_path, 1, tied, {})

    _, loaded, _ = load_latest(tmp_path)

    assert all(torch.equal(loaded[name], tensor) for name, tensor in tied.items())


def net_and_adamw(amsgrad: bool = False) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).to(torch.bfloat16))
    groups = [
        {"params": net[0].parameters(), "weight_decay": 0.0},
        {"params": net[1].parameters(), "lr": 1e-4},
    ]
    return net, torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), amsgrad=amsgrad)


def train_one_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net[1](net[0](torch.ones(5, 3)).to(torch.bfloat16)).float().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_resumed_from_disk_takes_the_same_steps(tmp_path, amsgrad):
    net, optimizer = net_and_adamw(amsgrad)
    train_one_step(net, optimizer)
    tensors, tree = flatten_state(optimizer.state_dict(), "optimizer")
    save_step(
        tmp_path, 1, tensors | {f"net.{k}": v for k, v in net.state_dict().items()}, {"optimizer": tree}
    )
    _, loaded, state = load_latest(tmp_path)
    other, other_optimizer = net_and_adamw(amsgrad)
    other.load_state_dict({k: loaded[f"net.{k}"] for k in net.state_dict()})
    other_optimizer.load_state_dict(unflatten_state(loaded, state["optimizer"]))

    for _ in range(3):
        train_one_step(net, optimizer)
        train_one_step(other, other_optimizer)

    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert str(optimizer.state_dict()) == str(other_optimizer.state_dict())
