"""Laws of scans and scenes: as published, splits without overlap, images of the colours that were named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from model.errors import UserError
from tests.training.raw_data import POINTER, copy_raw_data
from training.digits.scans import load_scans
from training.digits.scenes import (
    BACKGROUNDS,
    COLORS,
    TEST_PAIRS,
    VALIDATION_PAIRS,
    Scene,
    render,
    split_scans,
)
from training.registry.data_pointer import data_md5, md5_on_disk


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return copy_raw_data(tmp_path_factory.mktemp("raw") / "data")


def test_the_scans_are_those_that_scikit_learn_ships_in_its_order(data):
    digits = load_digits()

    scans, labels = load_scans(data)

    assert (scans == digits.images).all()
    assert (labels == digits.target).all()
    assert md5_on_disk(data) == data_md5(POINTER)


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


def test_held_out_pairs_leave_every_digit_and_color_in_training():
    held_out = TEST_PAIRS | VALIDATION_PAIRS

    assert len(TEST_PAIRS) == 10
    assert len(held_out) == 15
    assert {digit for digit, _ in TEST_PAIRS} == set(range(10))
    for color in COLORS:
        assert sum(c == color for _, c in held_out) <= 4


def test_an_image_has_the_colors_of_its_scene_and_the_same_seed_gives_the_same_image(data):
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


def test_a_disk_that_fails_is_no_mistake_of_the_scans(data, monkeypatch):
    def fail(*_, **__):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(pq, "read_table", fail)

    with pytest.raises(OSError, match="Stale file handle"):
        load_scans(data)


def test_broken_and_missing_scans_are_named(tmp_path):
    path = tmp_path / "digits.parquet"
    with pytest.raises(UserError, match=r"no scans at .*digits\.parquet; fetch them with: dvc pull"):
        load_scans(tmp_path)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"digits\.parquet is not a parquet file of scans"):
        load_scans(tmp_path)
    pq.write_table(pa.table({"label": [1], "scan": [[99] * 64]}), path)
    with pytest.raises(UserError, match="ink from 0 to 16"):
        load_scans(tmp_path)
    pq.write_table(pa.table({"label": [1], "ink": [[9] * 64]}), path)
    with pytest.raises(UserError, match=r"digits\.parquet is not a parquet file of scans"):
        load_scans(tmp_path)
