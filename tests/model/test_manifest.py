"""Laws of the manifest: a folder is exactly what its manifest says, or a file is named."""

import json
from pathlib import Path

import pytest

from model.manifest import link_published, manifest_sha256, verify, write_manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "model-00001.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "vocabulary.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_an_untouched_folder_is_right_and_its_hash_is_stable(folder):
    verify(folder)

    assert write_manifest(folder) == manifest_sha256(folder)


def test_a_record_a_marker_and_hidden_files_may_be_added_later(folder):
    for name in ("lineage.json", "COMPLETE", ".gitignore"):
        (folder / name).write_text("later")

    verify(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "inner" / "vocabulary.json").write_text("[]"), r"vocabulary\.json has SHA-256"),
        (lambda f: (f / "inner" / "vocabulary.json").write_text("{ }"), r"vocabulary\.json has 3 bytes"),
        (lambda f: (f / "inner" / "vocabulary.json").unlink(), r"vocabulary\.json is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"1"), r"model\.safetensors is not in the manifest"),
        (lambda f: (f / "inner" / "lineage.json").write_bytes(b"1"), r"lineage\.json is not in the manifest"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json is not a manifest"),
        (lambda f: (f / "manifest.json").write_text('{"a": 1}'), r"manifest\.json is not a manifest"),
        (
            lambda f: (f / "manifest.json").write_text(
                json.dumps({"/etc/hostname": {"sha256": "", "bytes": 1}})
            ),
            "missing",
        ),
    ],
)
def test_any_difference_is_named(folder, damage, message):
    damage(folder)

    with pytest.raises(ValueError, match=message):
        verify(folder)


def test_weights_are_linked_and_what_may_be_edited_in_place_is_copied(folder, tmp_path_factory):
    (folder / "MLmodel").write_text("not in the manifest")
    target = tmp_path_factory.mktemp("linked") / "model"

    link_published(folder, target)

    verify(target)
    assert (target / "model-00001.safetensors").samefile(folder / "model-00001.safetensors")
    assert not (target / "inner" / "vocabulary.json").samefile(folder / "inner" / "vocabulary.json")
    assert not (target / "MLmodel").exists()


def test_where_a_file_system_has_no_links_weights_are_copied(folder, tmp_path_factory, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    target = tmp_path_factory.mktemp("copied") / "model"

    link_published(folder, target)

    verify(target)
    assert not (target / "model-00001.safetensors").samefile(folder / "model-00001.safetensors")


def test_hashes_that_are_known_are_not_computed_again(folder):
    known = {"model-00001.safetensors": "0" * 64}

    write_manifest(folder, known)

    entries = json.loads((folder / "manifest.json").read_text())
    assert entries["model-00001.safetensors"]["sha256"] == "0" * 64
    assert entries["inner/vocabulary.json"]["sha256"] != "0" * 64
