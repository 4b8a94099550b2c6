"""Laws of the judge and of the Frechet distance: right on scans it never saw, silent on what is no digit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter
from scipy.linalg import sqrtm

from tests.training.raw_data import copy_raw_data
from training.digits.scans import load_scans
from training.digits.scenes import BACKGROUNDS, COLORS, Scene, split_scans
from training.evaluation import judge as judge_module
from training.evaluation.frechet import distance_to_real, frechet_distance
from training.evaluation.judge import Verdict, agreement, train_judge
from training.evaluation.real_pictures import RealPictures

POINTER = Path(__file__).parents[3] / "data.dvc"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "data"
    copy_raw_data(folder)
    return folder


@pytest.fixture(scope="module")
def judge(data):
    return train_judge(data)


@pytest.fixture(scope="module")
def held_out(data):
    return RealPictures(data, "test").every(2, seed=3)


def two_colored(mask_HW):
    return Image.fromarray(np.where(mask_HW[..., None], (222, 28, 36), (248, 248, 248)).astype(np.uint8))


def speckles(rng):
    return two_colored(rng.random((32, 32)) < 0.2)


def clouds(rng):
    coarse = Image.fromarray((rng.random((6, 6)) * 255).astype(np.uint8))
    return two_colored(np.asarray(coarse.resize((32, 32), Image.Resampling.BICUBIC)) < 90)


def noise(rng):
    return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))


def gray_noise(rng):
    return Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).convert("RGB")


def test_held_out_scans_are_read_as_people_labelled_them(judge, held_out):
    images, scenes = held_out

    accuracy = judge.accuracy(images, scenes)

    assert accuracy["digit"] > 0.985
    assert accuracy["color"] == accuracy["background"] == 1.0


def test_pictures_of_other_sizes_are_read_the_same(judge, held_out):
    images, scenes = held_out[0][:100], held_out[1][:100]
    enlarged = [image.resize((128, 128), Image.Resampling.NEAREST) for image in images]

    assert judge.judge(enlarged) == judge.judge(images)
    assert agreement(judge.judge(enlarged), scenes)["all_right"] > 0.95


@pytest.mark.parametrize("kind", [noise, gray_noise, speckles, clouds])
def test_what_is_no_digit_gets_no_name(judge, kind):
    rng = np.random.default_rng(0)

    verdicts = judge.judge([kind(rng) for _ in range(100)])

    assert sum(verdict.digit is None and verdict.color is None for verdict in verdicts) >= 98


@pytest.mark.parametrize(("name", "color"), BACKGROUNDS.items())
def test_a_blank_picture_shows_its_background_only(judge, name, color):
    verdict = judge.judge([Image.new("RGB", (32, 32), color)])[0]

    assert verdict == Verdict(None, None, name)


def test_colors_outside_the_palette_get_no_name(judge, held_out):
    image = next(i for i, scene in zip(*held_out, strict=True) if scene.background == "black")
    pixels = np.asarray(image).copy()
    pixels[pixels.max(-1) < 40] = (90, 60, 0)

    assert judge.judge([Image.fromarray(pixels)])[0].background is None


def test_no_pictures_no_verdicts(judge):
    assert judge.judge([]) == []


def test_the_judge_is_the_same_each_time_and_never_learns_from_held_out_scans(data, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "RENDERS_PER_SCAN", 1)
    scans, labels = load_scans(data)
    splits = split_scans(labels)
    for held_out in (splits["test"], splits["validation"]):
        scans[held_out] = scans[0]
    other = tmp_path / "digits.parquet"
    pq.write_table(pa.table({"label": labels, "scan": list(scans.reshape(-1, 64))}), other)
    images, _ = RealPictures(data, "test").every(1, seed=0)

    first, second = train_judge(data), train_judge(tmp_path)

    assert first.judge(images) == second.judge(images)
    np.testing.assert_array_equal(first.features(images), second.features(images))


def test_an_unknown_split_is_refused_by_name(data):
    with pytest.raises(ValueError, match=r"split must be one of .* got 'evaluation'"):
        RealPictures(data, "evaluation")


def test_frechet_distance_is_that_of_two_gaussians():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5))
    second = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) + 1
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    traces = np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)

    distance = frechet_distance(first, second)

    assert distance == pytest.approx(np.sum((first.mean(0) - second.mean(0)) ** 2) + traces)
    assert distance == pytest.approx(frechet_distance(second, first))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(5 * 2**2)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(3), np.full((4, 3), np.nan)])
def test_features_that_fit_no_gaussian_are_refused(features):
    with pytest.raises(ValueError, match="second: need at least 2 rows"):
        frechet_distance(np.zeros((5, 3)), features)


def test_real_pictures_lie_at_the_floor_and_blurred_ones_above(judge, data):
    colors, backgrounds = list(COLORS), list(BACKGROUNDS)
    scenes = [Scene(i % 10, colors[i % 6], backgrounds[i % 5], -1) for i in range(300)]
    real = RealPictures(data, "train").like(scenes, seed=50)
    blurred = [image.filter(ImageFilter.GaussianBlur(1.2)) for image in real]

    near = distance_to_real(judge, real, scenes, data, "test")
    far = distance_to_real(judge, blurred, scenes, data, "test")

    assert near["frechet_floor"] == far["frechet_floor"] > 0
    assert 0.6 < near["frechet_ratio"] < 1.5
    assert far["frechet_ratio"] > 2
    assert near["frechet_ratio"] == pytest.approx(near["frechet"] / near["frechet_floor"])
