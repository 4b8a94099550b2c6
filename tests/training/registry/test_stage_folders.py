"""Laws of a stage's folders: its record names what it starts from, its run has the names of every other."""

from pathlib import Path

import pytest

from model.manifest import write_manifest
from tests.training.registry.repositories import git
from training.params import load_params
from training.registry.lineage import config_sha256
from training.registry.stage_folders import StageFolders, config_of, tracked_params
from training.run_context import ImageFacts

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml", "smoke")


def test_the_record_of_a_stage_names_the_weights_it_starts_from(repository):
    parent = repository / "outputs" / "stage1" / "model"
    parent.mkdir(parents=True)
    place = StageFolders("stage2", repository / "prepared", repository / "outputs", repository / "data.dvc")
    records = []
    for content in ("one", "other"):
        (parent / "model.safetensors").write_text(content)
        weights = write_manifest(parent)
        records.append(place.lineage(PARAMS, None, "stage1"))
        assert (records[-1].parent_stage, records[-1].parent_weights_sha256) == ("stage1", weights)

    assert records[0] != records[1]
    assert (records[0].stage, records[0].size, records[0].precision) == ("stage2", "smoke", PARAMS.precision)
    assert records[0].config_sha256 == config_sha256(config_of(PARAMS.model_dump(), "stage2"))
    assert (records[0].git_commit, records[0].git_dirty) == (git(repository, "rev-parse", "HEAD"), False)


def test_in_an_image_the_record_names_it_and_the_code_that_lies_in_it(tmp_path):
    (tmp_path / "data.dvc").write_text("outs: [{md5: d.dir, path: data}]")
    place = StageFolders("backbones", tmp_path / "prepared", tmp_path / "outputs", tmp_path / "data.dvc")
    image = ImageFacts(commit="a" * 40, is_dirty=True, name="registry/training@sha256:1")

    record = place.lineage(PARAMS, image)

    assert (record.git_commit, record.git_dirty) == (image.commit, True)
    assert record.training_image == image.name
    assert record.tags()["vargpt.training_image"] == image.name


def test_the_first_stage_has_no_parent(repository):
    place = StageFolders(
        "backbones", repository / "prepared", repository / "outputs", repository / "data.dvc"
    )

    assert place.lineage(PARAMS, None).parent_stage is None


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3", "joint"])
def test_parameters_have_the_same_names_in_every_stage_so_that_runs_compare(stage):
    found = tracked_params(PARAMS, stage)

    assert found.keys() == tracked_params(PARAMS, "stage1").keys()
    assert (found["stage"], found["lr"]) == (stage, getattr(PARAMS, stage).lr)
    assert found["prepare"]["scenes"] == PARAMS.prepare.scenes
    assert tracked_params(PARAMS, "backbones")["decoder"]["lr"] == PARAMS.backbones.decoder.lr
