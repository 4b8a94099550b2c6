"""Laws of lineage: the record names everything by hash, and the walk back sees any change on the way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.manifest import verify, write_manifest
from training.registry.lineage import (
    Lineage,
    config_sha256,
    data_md5,
    data_path,
    git_facts,
    md5_on_disk,
    read_lineage,
    trace_lineage,
    write_lineage,
)

CONFIG = {"stage": 1, "schedule": {"rate": 0.001, "steps": 10}}


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    return run(folder, "git", *identity, *arguments)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    """A repository whose data real git and real DVC have taken in; not to be changed."""
    root = tmp_path_factory.mktemp("repository")
    for name in (
        "b.csv",
        "a.csv",
        "deep/er/c.csv",
        "deep/a b.csv",
        ".hidden",
        "deep.csv",
        "umlaut-\u00e4.csv",
    ):
        (root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "data" / name).write_text(f"content of {name}\n")
    (root / "code.py").write_text("answer = 42\n")
    git(root, "init", "-q")
    dvc = str(Path(sys.executable).with_name("dvc"))
    run(root, dvc, "init", "-q")
    run(root, dvc, "add", "-q", "data")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


@pytest.fixture
def repository(tracked, tmp_path) -> Path:
    return Path(shutil.copytree(tracked, tmp_path / "repository", symlinks=True))


@pytest.fixture
def published(repository) -> Path:
    """A model folder with its record, made from the repository as it is."""
    folder = repository / ".." / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    commit, is_dirty = git_facts(repository)
    record = Lineage(
        data_md5=data_md5(repository / "data.dvc"),
        config_sha256=config_sha256(CONFIG),
        git_commit=commit,
        git_dirty=is_dirty,
        weights_sha256=write_manifest(folder),
    )
    write_lineage(record, folder)
    return folder


def wrong(published: Path, repository: Path) -> list[str]:
    return [check.name for check in trace_lineage(published, repository, config=CONFIG) if not check.is_right]


def test_our_hash_of_a_folder_is_the_one_that_dvc_writes(repository):
    pointer = repository / "data.dvc"

    assert data_md5(pointer).endswith(".dir")
    assert md5_on_disk(data_path(pointer)) == data_md5(pointer)


def test_our_hash_of_a_file_is_the_one_that_dvc_writes(repository):
    (repository / "raw.bin").write_bytes(bytes(range(256)))
    run(repository, str(Path(sys.executable).with_name("dvc")), "add", "-q", "raw.bin")

    assert md5_on_disk(repository / "raw.bin") == data_md5(repository / "raw.bin.dvc")


def test_the_walk_back_from_an_untouched_model_finds_every_link_right(published, repository):
    verify(published)

    checks = trace_lineage(published, repository, config=CONFIG)

    assert [check.name for check in checks] == ["weights", "data pointer", "data", "git commit", "config"]
    assert all(check.is_right for check in checks)


def test_a_changed_weight_is_seen(published, repository):
    (published / "model.safetensors").write_bytes(b"weightz")

    assert wrong(published, repository) == ["weights"]


def test_weights_swapped_together_with_their_manifest_are_seen(published, repository):
    (published / "model.safetensors").write_bytes(b"others")
    write_manifest(published)
    verify(published)

    assert wrong(published, repository) == ["weights"]


def test_a_changed_data_file_is_seen(published, repository):
    (repository / "data" / "a.csv").write_text("changed\n")

    assert wrong(published, repository) == ["data"]


def test_another_version_of_the_data_is_seen(published, repository):
    (repository / "data" / "a.csv").write_text("changed\n")
    run(repository, str(Path(sys.executable).with_name("dvc")), "add", "-q", "data")

    assert wrong(published, repository) == ["data pointer", "data"]


def test_missing_data_is_a_wrong_link_not_a_crash(published, repository):
    shutil.rmtree(repository / "data")
    assert wrong(published, repository) == ["data"]

    (repository / "data.dvc").unlink()
    assert wrong(published, repository) == ["data pointer", "data"]


def test_a_commit_that_the_history_does_not_know_is_seen(published, repository):
    record = json.loads((published / "lineage.json").read_text()) | {"git_commit": "0" * 40}
    (published / "lineage.json").write_text(json.dumps(record))

    assert wrong(published, repository) == ["git commit"]


def test_another_configuration_is_seen(published, repository):
    checks = trace_lineage(published, repository, config=CONFIG | {"stage": 2})

    assert [check.name for check in checks if not check.is_right] == ["config"]


def test_a_model_of_changed_code_is_never_right(published, repository):
    record = json.loads((published / "lineage.json").read_text()) | {"git_dirty": True}
    (published / "lineage.json").write_text(json.dumps(record))

    assert wrong(published, repository) == ["git commit"]


def test_a_changed_file_makes_the_tree_dirty_but_what_runs_write_does_not(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert git_facts(repository) == (head, False)

    (repository / "metrics").mkdir()
    (repository / "metrics" / "evaluate.json").write_text("{}")
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    assert git_facts(repository) == (head, False)

    (repository / "code.py").write_text("answer = 43\n")
    assert git_facts(repository) == (head, True)


def test_where_git_is_absent_what_was_given_counts(tmp_path, monkeypatch, repository):
    assert git_facts(tmp_path, "c0ffee", False) == ("c0ffee", False)
    assert git_facts(tmp_path) == (None, None)

    monkeypatch.setenv("PATH", "")
    assert git_facts(repository, "c0ffee", True) == ("c0ffee", True)


def test_a_folder_without_git_does_not_take_the_commit_of_the_one_above(repository):
    inner = repository / "inner"
    inner.mkdir()

    assert git_facts(inner, "c0ffee") == ("c0ffee", None)


def test_the_hash_of_a_configuration_ignores_order_and_nothing_else():
    assert config_sha256({"a": 1, "b": {"c": 2, "d": 3}}) == config_sha256({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_sha256({"a": 1}) != config_sha256({"a": 1.5})
    assert config_sha256({"a": [1, 2]}) != config_sha256({"a": [2, 1]})


def test_a_record_comes_back_as_written_and_is_not_part_of_the_manifest(published):
    record = read_lineage(published)
    write_lineage(record, published)

    assert read_lineage(published) == record
    verify(published)


def test_tags_hold_what_is_known_and_the_commit_under_mlflows_own_name():
    tags = Lineage(data_md5="d.dir", config_sha256="c", git_commit="g", git_dirty=False).tags()

    assert tags == {
        "vargpt.data_md5": "d.dir",
        "vargpt.config_sha256": "c",
        "vargpt.git_commit": "g",
        "vargpt.git_dirty": "false",
        "mlflow.source.git.commit": "g",
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"data_md5": "a", "config_sha256": "b", "more": 1}'])
def test_what_is_not_a_record_is_named(tmp_path, text):
    (tmp_path / "lineage.json").write_text(text)

    with pytest.raises(ValueError, match=r"lineage\.json is not a lineage record"):
        read_lineage(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"lineage\.json does not exist"):
        read_lineage(tmp_path)


@pytest.mark.parametrize("text", ["", "outs: []", "outs:\n- path: data\n", "outs: [{md5: a}, {md5: b}]", "{"])
def test_a_pointer_without_one_hash_is_named(tmp_path, text):
    (tmp_path / "data.dvc").write_text(text)

    with pytest.raises(ValueError, match=r"data\.dvc does not name one output"):
        data_md5(tmp_path / "data.dvc")


def test_a_missing_pointer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.dvc does not exist"):
        data_md5(tmp_path / "data.dvc")
