"""Laws of the prepared data: kept pairs stay out of training, splits share no scan, the same seed gives the
same bytes.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.raw_data import copy_raw_data
from training.digits.prepare import POPE_SETTINGS, SceneRenderer, prepare, wishes
from training.digits.scans import load_scans
from training.digits.scenes import BACKGROUNDS, COLORS, DIGITS, TUNING_PAIRS, UNSEEN_PAIRS, split_scans
from training.params import load_params
from training.registry.data_pointer import md5_on_disk

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def params():
    smoke = load_params(ROOT / "params.yaml", "smoke").prepare
    sizes = {"scenes": 300, "understanding": 150, "drawing": 150, "text": 150, "test": 300}
    return smoke.model_copy(update=sizes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "data"
    copy_raw_data(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(params, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    prepare(params, 0, data, out, lambda name: None)
    return out


def records(prepared, name):
    return json.loads((prepared / f"{name}.json").read_text())


def shard_facts(prepared, split):
    with tarfile.open(prepared / "scenes" / f"{split}-00000.tar") as tar:
        return [json.load(tar.extractfile(m)) for m in tar.getmembers() if m.name.endswith(".json")]


def test_kept_pairs_appear_in_no_training_file(prepared):
    words = [(DIGITS[digit], color) for digit, color in UNSEEN_PAIRS | TUNING_PAIRS]
    texts = [
        value if isinstance(value, str) else json.dumps(value)
        for name in ("understanding/train", "drawing/train", "text/train")
        for record in records(prepared, name)
        for value in [json.dumps(record)]
    ]
    texts += [json.dumps(facts) for facts in shard_facts(prepared, "train")]

    assert texts
    for digit, color in words:
        assert not [text for text in texts if f"{color} {digit}" in text]
    for facts in shard_facts(prepared, "train"):
        assert (facts["digit"], facts["color"]) not in UNSEEN_PAIRS | TUNING_PAIRS


def test_splits_share_no_scan(prepared, data):
    splits = {name: set(part.tolist()) for name, part in split_scans(load_scans(data)[1]).items()}
    for split in ("train", "validation", "test"):
        used = {record["meta"]["scan"] for record in records(prepared, f"understanding/{split}")}
        assert used <= splits[split]
    assert {r["meta"]["scan"] for r in records(prepared, "understanding/test")} == splits["test"]
    assert {facts["scan"] for facts in shard_facts(prepared, "train")} <= splits["train"]


def test_every_pope_setting_asks_as_often_for_what_is_there_as_for_what_is_not(prepared):
    for setting in POPE_SETTINGS:
        asked = [r for r in records(prepared, "understanding/test") if r["meta"].get("setting") == setting]
        answers = [record["conversations"][1]["value"] for record in asked]
        assert answers.count("Yes.") == answers.count("No.") == 360


def test_drawing_prompts_cover_every_combination_with_kept_pairs_marked(prepared):
    wishes = records(prepared, "drawing/test")

    combinations = {(w["meta"]["digit"], w["meta"]["color"], w["meta"]["background"]) for w in wishes}
    assert len(combinations) == 300
    assert sum(w["meta"]["unseen"] for w in wishes) == 75  # 10 test pairs and 5 tuning pairs on 5 backgrounds


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(params, data, prepared, tmp_path):
    prepare(params, 0, data, tmp_path / "again", lambda name: None)
    prepare(params, 1, data, tmp_path / "other", lambda name: None)

    assert md5_on_disk(tmp_path / "again") == md5_on_disk(prepared)
    assert md5_on_disk(tmp_path / "other") != md5_on_disk(prepared)


def test_every_picture_is_named_and_every_name_has_its_picture(prepared):
    for kind in ("understanding", "drawing"):
        named = set()
        for split in ("train", "validation", "test"):
            for record in records(prepared, f"{kind}/{split}"):
                named |= {record["image"]} if "image" in record else set(record["images"])
        lying = {f"images/{path.name}" for path in (prepared / kind / "images").iterdir()}
        assert named == lying


def test_a_recolored_digit_is_the_same_digit_in_the_same_place(prepared):
    pairs = [r for r in records(prepared, "drawing/train") if r["meta"]["family"] == "recolor"]
    assert pairs
    for record in pairs:
        before, after = (ink(prepared / "drawing" / name) for name in record["images"])

        assert np.abs(before - after).max() < 0.15, record["id"]


def ink(path):
    """Share of the digit's colour in every pixel, told by the picture alone."""
    pixels = np.asarray(Image.open(path).convert("RGB"), float)
    paints = list(COLORS.values())
    grounds = np.array(list(BACKGROUNDS.values()))
    edge = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    ground = grounds[np.abs(grounds - edge).sum(1).argmin()]
    away = np.abs(pixels - ground).sum(-1)
    far = pixels[np.unravel_index(away.argmax(), away.shape)]
    color = np.array(paints[int(np.abs(np.array(paints) - far).sum(1).argmin())])
    return ((pixels - ground) @ (color - ground)) / ((color - ground) @ (color - ground))


def test_the_first_prompts_already_hold_every_digit_and_a_share_of_kept_pairs(prepared):
    first = [wish["meta"] for wish in records(prepared, "drawing/test")[:60]]

    assert {meta["digit"] for meta in first} == set(range(10))
    assert 6 <= sum(meta["unseen"] for meta in first) <= 24
    assert sum(meta["family"] == "draw" for meta in first) == 30


def test_two_passes_ask_for_every_combination_with_and_without_a_description(data):
    asked = [record["meta"] for record, _ in wishes(SceneRenderer(data, "test", 0, 0.0), 600)]

    assert (
        len({tuple(meta[name] for name in ("family", "digit", "color", "background")) for meta in asked})
        == 600
    )


def test_the_tiny_size_asks_for_enough_drawings(data):
    params = load_params(ROOT / "params.yaml", "tiny")

    asked = [
        record["meta"]
        for record, _ in wishes(SceneRenderer(data, "test", params.seed, 0.0), params.prepare.test)
    ]

    assert len(asked) >= 600
    assert sum((meta["digit"], meta["color"]) in UNSEEN_PAIRS for meta in asked) >= 100
