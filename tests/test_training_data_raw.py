"""Laws of the raw data and of the scenes: restored exactly, split cleanly, drawn as named."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.lineage import md5_on_disk
from training.raw import load_scans, restore
from training.scenes import BACKGROUNDS, COLORS, TUNING_PAIRS, UNSEEN_PAIRS, Scene, render, split_scans

ROOT = Path(__file__).parents[1]
POINTER = ROOT / "data.dvc"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "data"
    assert restore(folder, POINTER) == 1797
    return folder


def test_restoring_again_writes_nothing_and_damage_is_repaired(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    victim = copy / "digits" / "0" / "0000.pgm"
    victim.write_bytes(b"broken")

    assert restore(data, POINTER) == 0
    assert restore(copy, POINTER) == 1
    assert md5_on_disk(copy) == md5_on_disk(data)


def test_files_that_do_not_belong_are_named(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "digits" / "0" / "mine.pgm").write_bytes(b"P5")

    with pytest.raises(ValueError, match=r"mine\.pgm is not part of the raw data"):
        restore(copy, POINTER)


def test_dvc_finds_the_restored_data_as_it_was_added(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q"], cwd=tmp_path, check=True)
    shutil.copy(POINTER, tmp_path)
    before = POINTER.read_text()

    subprocess.run([*dvc, "commit", "-q", "-f", "data.dvc"], cwd=tmp_path, check=True)

    assert (tmp_path / "data.dvc").read_text() == before


def test_splits_share_no_scan_and_hold_every_digit(data):
    _, labels = load_scans(data)

    splits = split_scans(labels)

    assert {name: len(part) for name, part in splits.items()} == {
        "test": 360,
        "validation": 150,
        "train": 1287,
    }
    assert len(np.unique(np.concatenate(list(splits.values())))) == 1797
    for part in splits.values():
        counts = np.bincount(labels[part], minlength=10)
        assert counts.min() >= 0.9 * counts.mean()


def test_pairs_kept_apart_leave_every_digit_and_color_in_training():
    kept = UNSEEN_PAIRS | TUNING_PAIRS

    assert len(UNSEEN_PAIRS) == 10
    assert len(kept) == 15
    assert {digit for digit, _ in UNSEEN_PAIRS} == set(range(10))
    for color in COLORS:
        assert sum(c == color for _, c in kept) <= 4


def test_a_scene_has_its_colors_and_the_same_seed_gives_the_same_picture(data):
    scans, labels = load_scans(data)
    for digit in range(10):
        scan = int(np.flatnonzero(labels == digit)[0])
        for color, background in [("red", "white"), ("yellow", "black"), ("purple", "gray")]:
            scene = Scene(digit, color, background, scan)
            picture = np.asarray(render(scans[scan], scene, np.random.default_rng(3), 0.8), float)
            again = np.asarray(render(scans[scan], scene, np.random.default_rng(3), 0.8), float)

            assert (picture == again).all()
            distance_to_color = np.abs(picture - COLORS[color]).max(-1)
            distance_to_back = np.abs(picture - BACKGROUNDS[background]).max(-1)
            assert (distance_to_color < 16).sum() > 10
            assert (distance_to_back < 16).mean() > 0.3


def test_broken_and_missing_scans_are_named(data, tmp_path):
    with pytest.raises(ValueError, match=r"no scans in .*nowhere"):
        load_scans(tmp_path / "nowhere")
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "digits" / "3" / "0003.pgm").write_bytes(b"P5\n8 8\n16\nshort")

    with pytest.raises(ValueError, match=r"0003\.pgm is not an 8 x 8 scan"):
        load_scans(copy)
