"""Laws of content hashes: any change of a word or a pixel shows, a move on the disk does not."""

import json
import shutil

import pytest

from tests.training.data.parts import ASKED, png, read, write_json
from training.data.content import files_sha256, samples_sha256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for name, color in (("a.png", (9, 9, 9)), ("b.png", (8, 8, 8))):
        (tmp_path / "set" / name).write_bytes(png(color))
    records = [{"id": name, "image": name, "conversations": ASKED} for name in ("a.png", "b.png")]
    write_json(tmp_path / "set", records)
    return tmp_path / "set"


def content(folder):
    samples, _ = read(folder / "train.json")
    return samples_sha256([samples])


def test_the_same_data_elsewhere_has_the_same_hash(folder, tmp_path):
    assert content(shutil.copytree(folder, tmp_path / "other")) == content(folder)


def other_pixels(folder):
    (folder / "a.png").write_bytes(png((9, 9, 10)))


def swapped_pictures(folder):
    (folder / "a.png").rename(folder / "c.png")
    (folder / "b.png").rename(folder / "a.png")
    (folder / "c.png").rename(folder / "b.png")


def another_word(folder):
    path = folder / "train.json"
    path.write_text(path.read_text().replace("Seven.", "Eight."))


def another_order(folder):
    path = folder / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


@pytest.mark.parametrize("change", [other_pixels, swapped_pictures, another_word, another_order])
def test_a_change_that_keeps_all_counts_changes_the_hash(folder, change):
    before = content(folder)

    change(folder)

    assert content(folder) != before


def test_files_are_known_by_their_content(folder):
    paths = [folder / "a.png", folder / "none.png", folder / "b.png"]
    before = files_sha256(paths)

    other_pixels(folder)

    assert files_sha256(paths) != before
    assert files_sha256([folder / "none.png"]) == files_sha256([])
