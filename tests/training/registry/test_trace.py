"""Laws of the walk back: every changed link is seen, and what has moved on or is not here is not wrong."""

import json
import shutil

import pytest

from model.manifest import verify, write_manifest
from tests.training.registry.repositories import DVC, commit, move_data_on, publish, run
from training.registry.trace import trace_lineage

STAGES = ("backbones", "stage1", "stage2", "stage3")
CHECKS = ["weights", "data pointer", "data", "git commit", "config"]


@pytest.fixture
def published(repository):
    """The last model of a whole chain, made from the repository as it is."""
    for stage, parent in zip(STAGES, (None, *STAGES), strict=False):
        folder = publish(repository, stage, parent)
    return folder


def trace(folder, repository):
    return trace_lineage(folder, repository, repository / "outputs")


def names(published, repository, is_right):
    """Names of the checks of the last model that are right, wrong or unknown."""
    checks = trace(published, repository)[0].checks
    return [check.name for check in checks if check.is_right is is_right]


def edit(folder, **facts):
    record = json.loads((folder / "lineage.json").read_text()) | facts
    (folder / "lineage.json").write_text(json.dumps(record))


def test_the_walk_from_an_untouched_model_goes_to_the_backbones_and_finds_every_link_right(
    published, repository
):
    chain = trace(published, repository)

    assert [link.stage for link in chain] == list(STAGES[::-1])
    for link in chain:
        assert [check.name for check in link.checks] == CHECKS
        assert all(check.is_right for check in link.checks), link


def test_a_changed_weight_is_seen(published, repository):
    (published / "model.safetensors").write_bytes(b"weights of stageX")

    assert names(published, repository, False) == ["weights"]


def test_weights_swapped_together_with_their_manifest_are_seen(published, repository):
    (published / "model.safetensors").write_bytes(b"others")
    write_manifest(published)
    verify(published)

    assert names(published, repository, False) == ["weights"]


def test_a_changed_data_file_is_seen(published, repository):
    (repository / "data" / "a.csv").write_text("changed\n")

    assert names(published, repository, False) == ["data"]


def test_an_old_model_stays_right_when_data_and_parameters_move_on(published, repository):
    move_data_on(repository)

    assert names(published, repository, True) == ["weights", "data pointer", "git commit", "config"]
    assert names(published, repository, None) == ["data"]


def test_data_that_the_recorded_commit_does_not_name_are_seen(published, repository):
    edit(published, data_md5="0" * 32 + ".dir")

    assert names(published, repository, False) == ["data pointer"]


def test_data_pulled_away_are_unknown_and_no_crash(published, repository):
    shutil.rmtree(repository / "data")
    assert names(published, repository, None) == ["data"]

    (repository / "data.dvc").unlink()
    assert names(published, repository, None) == ["data"]
    assert names(published, repository, False) == []


def test_a_commit_that_the_history_does_not_know_is_seen(published, repository):
    edit(published, git_commit="0" * 40)

    assert names(published, repository, False) == ["git commit"]
    assert names(published, repository, None) == ["data pointer", "config"]


def test_a_configuration_that_the_recorded_commit_does_not_have_is_seen(published, repository):
    edit(published, config_sha256="0" * 64)
    assert names(published, repository, False) == ["config"]

    edit(published, size="tiny")
    assert names(published, repository, False) == ["config"]


def test_a_record_without_size_or_stage_leaves_the_configuration_unknown(published, repository):
    edit(published, size=None)
    assert names(published, repository, None) == ["config"]

    edit(published, size="smoke", stage="stage9")
    assert names(published, repository, None) == ["config"]


def test_a_model_of_changed_code_is_never_right(published, repository):
    edit(published, git_dirty=True)

    assert names(published, repository, False) == ["git commit"]


def test_code_of_which_nobody_knows_whether_it_was_changed_is_not_called_clean(published, repository):
    edit(published, git_dirty=None)

    assert names(published, repository, None) == ["git commit"]


def test_without_a_repository_what_git_knows_is_unknown(published, repository):
    shutil.rmtree(repository / ".git")

    assert names(published, repository, None) == ["data pointer", "git commit", "config"]
    assert names(published, repository, False) == []


def test_a_damaged_parent_is_seen(published, repository):
    (repository / "outputs" / "stage1" / "model" / "model.safetensors").write_bytes(b"weights of stageX")

    wrong = [
        (link.stage, c.name) for link in trace(published, repository) for c in link.checks if not c.is_right
    ]
    assert wrong == [("stage1", "weights")]


@pytest.mark.parametrize("is_gone", [True, False])
def test_the_chain_ends_where_a_parent_is_gone_or_was_trained_anew(published, repository, is_gone):
    parent = repository / "outputs" / "stage1" / "model"
    if is_gone:
        shutil.rmtree(parent)
    else:
        (parent / "model.safetensors").write_bytes(b"other weights")
        write_manifest(parent)

    *known, last = trace(published, repository)

    assert [link.stage for link in known] == ["stage3", "stage2"]
    assert all(check.is_right for link in known for check in link.checks)
    assert (last.stage, last.folder) == ("stage1", None)
    [check] = last.checks
    assert check.is_right is None and check.found.startswith("not here: ")


def test_what_a_model_started_from_is_part_of_its_record(repository):
    for stage, parent in (("backbones", None), ("stage1", "backbones"), ("stage2", "stage1")):
        publish(repository, stage, parent)
    first = json.loads((repository / "outputs" / "stage2" / "model" / "lineage.json").read_text())
    shutil.rmtree(repository / "outputs" / "stage2")
    (repository / "outputs" / "stage1" / "model" / "model.safetensors").write_bytes(b"another stage 1")

    second = json.loads((publish(repository, "stage2", "stage1") / "lineage.json").read_text())

    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["parent_weights_sha256"] != second["parent_weights_sha256"]


def test_the_chain_of_imported_weights_ends_with_the_files_they_were_read_from(repository):
    sources = {"llava/model.safetensors": "a" * 64}
    publish(
        repository, "backbones", stage="import", data_md5=None, config_sha256=None, sources_sha256=sources
    )

    chain = trace(publish(repository, "stage1", "backbones"), repository)

    assert [link.stage for link in chain] == ["stage1", "import"]
    assert chain[-1].sources_sha256 == sources
    assert [(check.name, check.is_right) for check in chain[-1].checks] == [
        ("weights", True),
        ("git commit", True),
    ]


def test_a_model_whose_parent_was_not_recorded_says_so(repository):
    [link] = trace(publish(repository, "stage2"), repository)

    assert [check.name for check in link.checks if check.is_right is None] == ["parent"]


def test_a_chain_that_bites_its_tail_is_refused(published, repository):
    first = repository / "outputs" / "backbones" / "model"
    last = json.loads((published / "lineage.json").read_text())
    edit(first, parent_stage="stage3", parent_weights_sha256=last["weights_sha256"])

    with pytest.raises(ValueError, match="names a parent that comes after it"):
        trace(published, repository)


def test_a_pointer_that_was_none_at_the_commit_is_unknown(repository):
    (repository / "data.dvc").write_text("outs: []\n")
    broken = commit(repository, "a broken pointer")
    run(repository, DVC, "add", "-q", "data")
    published = publish(repository, "backbones", git_commit=broken)

    assert names(published, repository, None) == ["data pointer"]
