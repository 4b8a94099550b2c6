"""Laws of code hashes: a change of meaning changes the hash of its room, words about the code do not."""

import shutil
from pathlib import Path

import pytest

from training.registry.code_hash import meaning, room_hashes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copy(tmp_path):
    for package in ("model", "training"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edited(copy, file, old, new):
    path = copy / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    return room_hashes(copy)


def changed(before, after):
    return {
        f"{package}.{room}"
        for package in before
        for room in before[package]
        if before[package][room] != after[package].get(room)
    }


def test_comments_docstrings_and_empty_lines_change_no_hash(copy):
    before = room_hashes(copy)

    after = edited(copy, "training/stages/trainer.py", '"""', '"""Other words. ')
    edited(
        copy, "training/stages/trainer.py", "class Trainer:", "# A comment.\n\n\nclass Trainer:  # another"
    )

    assert changed(before, after) == set()
    assert changed(before, room_hashes(copy)) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "room"),
    [
        ("training/stages/trainer.py", "self.num_updates += 1", "pass", "training.stages"),
        ("model/layers.py", "NORM_EPS = 1e-6", "NORM_EPS = 1e-5", "model.network"),
        ("model/generation/images.py", "DECODED_PIXELS = 4096", "DECODED_PIXELS = 1", "model.generation"),
        ("training/precision.py", "else FLOAT32", "else BFLOAT16", "training.precision"),
    ],
)
def test_a_change_of_meaning_changes_the_hash_of_its_room_alone(copy, file, old, new, room):
    before = room_hashes(copy)

    assert changed(before, edited(copy, file, old, new)) == {room}


def test_a_moved_or_added_module_changes_the_hash_of_its_room(copy):
    before = room_hashes(copy)
    (copy / "training" / "data" / "another.py").write_text("ONE = 1\n")

    assert changed(before, room_hashes(copy)) == {"training.data"}


def test_what_looks_like_a_comment_in_a_string_is_meaning():
    assert meaning("a = '# no comment'  # a comment\n") == "a = '# no comment'"
    assert meaning('def f():\n    """Words."""\n    return """text # text"""\n') == (
        'def f():\n    return """text # text"""'
    )
