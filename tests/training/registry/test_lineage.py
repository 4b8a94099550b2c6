"""Laws of the lineage record: it comes back as written, and names all that it was made of by hash."""

import hashlib
import json

import pytest

from model.manifest import verify
from tests.training.registry.repositories import publish
from training.registry.lineage import (
    Lineage,
    config_sha256,
    hashes_of_sources,
    imported_lineage,
    read_lineage,
    write_lineage,
)


def test_the_hash_of_a_configuration_ignores_order_and_how_a_number_is_written_and_nothing_else():
    assert config_sha256({"a": 1, "b": {"c": 2, "d": 3}}) == config_sha256({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_sha256({"a": 1}) == config_sha256({"a": 1.0})
    assert config_sha256({"a": 1}) != config_sha256({"a": 1.5})
    assert config_sha256({"a": 1}) != config_sha256({"a": True})
    assert config_sha256({"a": [1, 2]}) != config_sha256({"a": [2, 1]})


def test_a_record_comes_back_as_written_and_is_not_part_of_the_manifest(repository):
    published = publish(repository, "stage1")
    record = read_lineage(published)
    write_lineage(record, published)

    assert read_lineage(published) == record
    verify(published)


def test_tags_hold_what_is_known_and_the_commit_under_mlflows_own_name():
    record = Lineage(
        data_md5="d.dir", config_sha256=None, git_commit="g", git_dirty=False, parent_stage="stage1"
    )

    assert record.tags() == {
        "vargpt.data_md5": "d.dir",
        "vargpt.git_commit": "g",
        "vargpt.git_dirty": "false",
        "vargpt.parent_stage": "stage1",
        "mlflow.source.git.commit": "g",
    }


def test_imported_weights_are_known_by_every_file_they_were_read_from(tmp_path):
    (tmp_path / "llava" / ".cache").mkdir(parents=True)
    (tmp_path / "llava" / ".cache" / "noise").write_text("not a source")
    for name in ("llava/a.safetensors", "llava/tokenizer.json", "var.pth"):
        (tmp_path / name).write_bytes(name.encode())

    record = imported_lineage(hashes_of_sources([tmp_path / "llava", tmp_path / "var.pth"]), "w" * 64)

    assert record.stage == "import"
    assert record.weights_sha256 == "w" * 64
    assert record.sources_sha256 == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("llava/a.safetensors", "llava/tokenizer.json", "var.pth")
    }


def test_a_record_from_before_images_were_recorded_is_read(repository):
    published = publish(repository, "stage1")
    written = json.loads((published / "lineage.json").read_text())
    del written["training_image"]
    (published / "lineage.json").write_text(json.dumps(written))

    assert read_lineage(published).training_image is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"data_md5": "a", "config_sha256": "b", "more": 1}'])
def test_what_is_not_a_record_is_named(tmp_path, text):
    (tmp_path / "lineage.json").write_text(text)

    with pytest.raises(ValueError, match=r"lineage\.json is not a lineage record"):
        read_lineage(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"lineage\.json does not exist"):
        read_lineage(tmp_path)
