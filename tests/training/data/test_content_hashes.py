"""Laws of content hashes: any change of a word or a pixel changes them, a move on the disk does not."""

import json
import shutil

import pytest

from tests.training.data.dataset_files import QUESTION, open_with_log, png, write_json
from training.data.content_hashes import files_sha256, samples_sha256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for name, color in (("a.png", (9, 9, 9)), ("b.png", (8, 8, 8))):
        (tmp_path / "set" / name).write_bytes(png(color))
    records = [{"id": name, "image": name, "conversations": QUESTION} for name in ("a.png", "b.png")]
    write_json(tmp_path / "set", records)
    return tmp_path / "set"


def content_hash(folder):
    samples, _ = open_with_log(folder / "train.json")
    return samples_sha256([samples])


def test_the_same_data_elsewhere_has_the_same_hash(folder, tmp_path):
    assert content_hash(shutil.copytree(folder, tmp_path / "other")) == content_hash(folder)


def change_a_pixel(folder):
    (folder / "a.png").write_bytes(png((9, 9, 10)))


def swap_two_images(folder):
    (folder / "a.png").rename(folder / "c.png")
    (folder / "b.png").rename(folder / "a.png")
    (folder / "c.png").rename(folder / "b.png")


def change_a_word(folder):
    path = folder / "train.json"
    path.write_text(path.read_text().replace("Seven.", "Eight."))


def reverse_the_records(folder):
    path = folder / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


@pytest.mark.parametrize("change", [change_a_pixel, swap_two_images, change_a_word, reverse_the_records])
def test_a_change_that_keeps_all_counts_changes_the_hash(folder, change):
    before = content_hash(folder)

    change(folder)

    assert content_hash(folder) != before


def test_the_hash_of_files_is_that_of_their_content_and_leaves_out_what_is_not_there(folder):
    paths = [folder / "a.png", folder / "none.png", folder / "b.png"]
    before = files_sha256(paths)

    change_a_pixel(folder)

    assert files_sha256(paths) != before
    assert files_sha256([folder / "none.png"]) == files_sha256([])
