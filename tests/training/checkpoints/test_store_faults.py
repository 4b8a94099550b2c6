"""Laws of the checkpoint store on disks that fail: saving is atomic and the step before stays."""

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

from tests.training.checkpoints.parts import assert_is_step, flip_a_bit, names, save_steps
from training.checkpoints import store
from training.checkpoints.step_folders import abandon_unfinished, unfinished_bytes
from training.checkpoints.store import SaveError, load_latest, newest_step, save_step

ROOT = Path(__file__).parents[3]


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


def test_a_half_written_step_is_deleted_and_logged(tmp_path, caplog):
    save_steps(tmp_path, 1)
    (tmp_path / "step_2.tmp").mkdir()
    (tmp_path / "step_2.tmp" / "tensors.safetensors").write_bytes(b"half")

    assert_is_step(load_latest(tmp_path), 1)

    assert "step_2.tmp" in caplog.text
    assert names(tmp_path) == ["step_1"]


def test_half_written_steps_of_several_kills_are_told_apart_and_their_room_counts_as_free(tmp_path):
    save_steps(tmp_path, 1)
    for _ in range(2):
        (tmp_path / "step_2.tmp").mkdir()
        (tmp_path / "step_2.tmp" / "part.safetensors").write_bytes(b"half")
        found = abandon_unfinished(tmp_path)

    assert {path.name for path in found} == {"step_2.tmp.abandoned", "step_2.tmp.abandoned-2"}
    assert unfinished_bytes(tmp_path) == 8
    assert newest_step(tmp_path) == 1


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
