"""Laws of prepared data: held-out pairs are not trained, splits share no scan, a seed decides every byte."""

import json
import tarfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from tests.training.raw_data import copy_raw_data
from training.digits import prepare as prepare_module
from training.digits.instructions import POPE_SETTINGS
from training.digits.prepare import prepare
from training.digits.records import drawing_prompt_records
from training.digits.scans import load_scans
from training.digits.scene_sampler import SceneSampler
from training.digits.scenes import BACKGROUNDS, COLORS, DIGITS, TEST_PAIRS, VALIDATION_PAIRS, split_scans
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
    prepare(params, 0, data, out)
    return out


def records(prepared, name):
    return json.loads((prepared / f"{name}.json").read_text())


def shard_facts(prepared, split):
    with tarfile.open(prepared / "scenes" / f"{split}-00000.tar") as tar:
        return [json.load(tar.extractfile(m)) for m in tar.getmembers() if m.name.endswith(".json")]


def test_every_dataset_says_beforehand_how_many_records_it_will_have(params, data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        prepare_module,
        "progress_line",
        lambda _, first, count, **__: said.append(count) or nullcontext(Mock()),
    )

    written = prepare(params, 0, data, tmp_path)

    assert said == [summary.records for summary in written.values()]


def test_held_out_pairs_appear_in_no_training_file(prepared):
    words = [(DIGITS[digit], color) for digit, color in TEST_PAIRS | VALIDATION_PAIRS]
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
        assert (facts["digit"], facts["color"]) not in TEST_PAIRS | VALIDATION_PAIRS


def test_splits_share_no_scan(prepared, data):
    splits = {name: set(part.tolist()) for name, part in split_scans(load_scans(data)[1]).items()}
    for split in ("train", "validation", "test"):
        used = {record["meta"]["scan"] for record in records(prepared, f"understanding/{split}")}
        assert used <= splits[split]
    assert {r["meta"]["scan"] for r in records(prepared, "understanding/test")} == splits["test"]
    assert {facts["scan"] for facts in shard_facts(prepared, "train")} <= splits["train"]


def test_every_pope_setting_has_as_many_questions_with_the_answer_yes_as_with_no(prepared):
    for setting in POPE_SETTINGS:
        chosen = [r for r in records(prepared, "understanding/test") if r["meta"].get("setting") == setting]
        answers = [record["conversations"][1]["value"] for record in chosen]
        assert answers.count("Yes.") == answers.count("No.") == 360


def test_drawing_prompts_cover_every_combination_with_held_out_pairs_marked(prepared):
    prompts = records(prepared, "drawing/test")

    combinations = {(w["meta"]["digit"], w["meta"]["color"], w["meta"]["background"]) for w in prompts}
    assert len(combinations) == 300
    assert (
        sum(w["meta"]["unseen"] for w in prompts) == 75
    )  # 10 test pairs and 5 tuning pairs on 5 backgrounds


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(params, data, prepared, tmp_path):
    prepare(params, 0, data, tmp_path / "again")
    prepare(params, 1, data, tmp_path / "other")

    assert md5_on_disk(tmp_path / "again") == md5_on_disk(prepared)
    assert md5_on_disk(tmp_path / "other") != md5_on_disk(prepared)


def test_every_image_is_named_by_a_record_and_every_name_has_its_image(prepared):
    for kind in ("understanding", "drawing"):
        named = set()
        for split in ("train", "validation", "test"):
            for record in records(prepared, f"{kind}/{split}"):
                named |= {record["image"]} if "image" in record else set(record["images"])
        found = {f"images/{path.name}" for path in (prepared / kind / "images").iterdir()}
        assert named == found


def test_a_recolored_digit_is_the_same_digit_in_the_same_place(prepared):
    pairs = [r for r in records(prepared, "drawing/train") if r["meta"]["family"] == "recolor"]
    assert pairs
    for record in pairs:
        before, after = (ink_of(prepared / "drawing" / name) for name in record["images"])

        assert np.abs(before - after).max() < 0.15, record["id"]


def ink_of(path):
    """Share of the digit's colour in every pixel, 0 to 1, found from the image alone."""
    pixels = np.asarray(Image.open(path).convert("RGB"), float)
    paints = list(COLORS.values())
    grounds = np.array(list(BACKGROUNDS.values()))
    edge = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    ground = grounds[np.abs(grounds - edge).sum(1).argmin()]
    away = np.abs(pixels - ground).sum(-1)
    far = pixels[np.unravel_index(away.argmax(), away.shape)]
    color = np.array(paints[int(np.abs(np.array(paints) - far).sum(1).argmin())])
    return ((pixels - ground) @ (color - ground)) / ((color - ground) @ (color - ground))


def test_the_first_prompts_already_hold_every_digit_and_a_share_of_held_out_pairs(prepared):
    first = [prompt["meta"] for prompt in records(prepared, "drawing/test")[:60]]

    assert {meta["digit"] for meta in first} == set(range(10))
    assert 6 <= sum(meta["unseen"] for meta in first) <= 24
    assert sum(meta["family"] == "draw" for meta in first) == 30


def test_two_passes_of_prompts_have_every_combination_with_and_without_a_description(data):
    prompts = [
        record["meta"] for record, _ in drawing_prompt_records(SceneSampler(data, "test", 0, 0.0), 600)
    ]

    assert (
        len({tuple(meta[name] for name in ("family", "digit", "color", "background")) for meta in prompts})
        == 600
    )


def test_the_tiny_size_has_600_drawing_prompts_and_100_of_held_out_pairs(data):
    params = load_params(ROOT / "params.yaml", "tiny")

    prompts = [
        record["meta"]
        for record, _ in drawing_prompt_records(
            SceneSampler(data, "test", params.seed, 0.0), params.prepare.test
        )
    ]

    assert len(prompts) >= 600
    assert sum((meta["digit"], meta["color"]) in TEST_PAIRS for meta in prompts) >= 100
