"""Laws of names and manifests: same work, same name; what is submitted is what the job is given."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from model.errors import UserError
from training.commands.cluster import submit
from training.launching.preflight import EXPECTED_CODE
from training.params import load_params
from training.submission.identity import stage_identity, stage_outputs
from training.submission.manifests import SUBMITTED, is_job, make_submission
from training.submission.pack_files import pack, unpack
from training.submission.result_files import reader_pod

ROOT = Path(__file__).resolve().parents[3]
IMAGE = "registry/vargpt-training@sha256:1"


@pytest.fixture(scope="module")
def _repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for name in ("model", "training"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "data.dvc", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "k8s" / "images", folder / "k8s" / "images")
    (folder / "artifacts").mkdir()
    for stage in ("backbones", "stage1", "stage2", "stage3"):
        (folder / "artifacts" / f"{stage}.json").write_text(json.dumps({"weights_sha256": f"of {stage}"}))
    (folder / "artifacts" / "codes.json").write_text(json.dumps({"codes": {}}))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def repository(_repository, tmp_path):
    """A repository in which all stages have run."""
    shutil.copytree(_repository, tmp_path / "repository")
    return tmp_path / "repository"


def name_of(root, stage="stage1", size="smoke", image=IMAGE):
    return stage_identity(stage, root, load_params(root / "params.yaml", size), image).name


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_same_work_has_the_same_name_in_another_clone(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "clone")

    name = name_of(repository)

    assert re.fullmatch(r"stage1-[0-9a-f]{10}", name)
    assert name_of(tmp_path / "clone") == name


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("params.yaml", "stage1: {steps: 30", "stage1: {steps: 31"),
        ("data.dvc", "md5: 4", "md5: 5"),
        ("artifacts/backbones.json", "of backbones", "of others"),
        ("training/stages/stage_table.py", "import", "import os\nimport"),
    ],
)
def test_whatever_decides_a_stage_changes_the_name_of_its_job(repository, file, old, new):
    before = name_of(repository)

    replace(repository / file, old, new)

    assert name_of(repository) != before


def test_image_and_size_change_the_name_and_the_parameters_of_other_stages_do_not(repository):
    names = {name_of(repository), name_of(repository, image="other"), name_of(repository, size="tiny")}
    assert len(names) == 3
    subprocess.run(["git", "update-index", "--assume-unchanged", "params.yaml"], cwd=repository, check=True)

    replace(repository / "params.yaml", "stage3: {steps: 30", "stage3: {steps: 31")

    assert name_of(repository) in names


def test_a_stage_that_starts_from_another_waits_for_it(repository):
    (repository / "artifacts" / "stage1.json").unlink()

    with pytest.raises(UserError, match=r"stage2 starts from what .*stage1.json names, .* run stage1 first"):
        name_of(repository, "stage2")


def test_what_dvc_yaml_names_is_what_is_fetched():
    assert stage_outputs("stage1", ROOT) == ["artifacts/stage1.json", "outputs/stage1/model/manifest.json"]
    assert "metrics/evaluate.json" in stage_outputs("evaluate", ROOT)
    assert "plots" in stage_outputs("evaluate", ROOT)


def pod_of(submission):
    if submission.runtime:
        job = submission.runtime["spec"]["template"]["spec"]["replicatedJobs"][0]
        return job["template"]["spec"]["template"]["spec"]
    spec = submission.job["spec"]
    return spec.get("pytorchReplicaSpecs", {}).get("Worker", spec)["template"]["spec"]


@pytest.mark.parametrize(
    ("stage", "api"),
    [
        ("prepare", "pytorchjob"),
        ("backbones", "pytorchjob"),
        ("encode", "pytorchjob"),
        ("stage1", "pytorchjob"),
        ("stage2", "trainjob"),
        ("evaluate", "pytorchjob"),
    ],
)
def test_a_job_is_given_the_submitted_parameters_and_the_hash_of_the_code(repository, stage, api):
    replace(repository / "params.yaml", "stage1: {steps: 30", "stage1: {steps: 31")

    made = make_submission(stage, repository, repository / "params.yaml", "smoke", api=api, namespace="ns")

    name = made.identity.name
    assert made.job["metadata"]["name"] == made.settings["metadata"]["name"] == name
    assert "stage1: {steps: 31" in made.settings["data"]["params.yaml"]
    assert made.settings["data"]["data.dvc"] == (repository / "data.dvc").read_text()
    pod = pod_of(made)
    assert {"name": "submitted", "configMap": {"name": name}} in pod["volumes"]
    container = pod["containers"][0]
    arguments = made.job["spec"]["trainer"]["args"] if made.runtime else container["args"]
    assert arguments[arguments.index("--params") + 1] == f"{SUBMITTED}/params.yaml"
    assert arguments[arguments.index("--size") + 1] == "smoke"
    [code] = [json.loads(one["value"]) for one in container["env"] if one["name"] == EXPECTED_CODE]
    assert code == made.identity.code
    if made.runtime:
        assert made.runtime["metadata"]["name"] == made.job["spec"]["runtimeRef"]["name"] == name


def test_a_stage_keeps_its_name_whatever_queue_and_priority_admit_it(repository):
    plain, urgent = (
        make_submission("stage1", repository, repository / "params.yaml", namespace="ns", **admitted)
        for admitted in ({}, {"queue": "training", "priority": "vargpt-urgent"})
    )
    labels = urgent.job["metadata"]["labels"]

    assert plain.identity.name == urgent.identity.name
    assert labels["kueue.x-k8s.io/queue-name"] == "training"
    assert labels["kueue.x-k8s.io/priority-class"] == "vargpt-urgent"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priority": "vargpt-urgent"}, "--priority decides between jobs of a queue: give --queue as well"),
        ({"api": "mpijob"}, "--api must be one of pytorchjob, trainjob, got 'mpijob'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_cluster_is_asked(monkeypatch, options, said):
    monkeypatch.setenv("KUBECONFIG", "nowhere")

    with pytest.raises(UserError, match=f"^{said}$"):
        submit("stage1", **options)


def test_a_submitted_stage_is_the_committed_manifest_but_for_its_name_and_what_it_is_given(repository):
    made = make_submission("stage1", repository, repository / "params.yaml", "7b", namespace="vargpt")
    committed = yaml.safe_load((ROOT / "k8s" / "stage1.yaml").read_text())

    assert made.job["spec"].keys() == committed["spec"].keys()
    ours, theirs = pod_of(made), committed["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert ours["containers"][0]["resources"] == theirs["containers"][0]["resources"]
    assert ours["tolerations"] == theirs["tolerations"]
    assert [one for one in ours["volumes"] if one["name"] != "submitted"] == theirs["volumes"]


def test_small_files_travel_through_a_log(tmp_path):
    (tmp_path / "there" / "prepared").mkdir(parents=True)
    (tmp_path / "there" / "prepared" / "summary.json").write_text("{}")
    (tmp_path / "there" / "prepared" / "large.bin").write_bytes(bytes(100))
    (tmp_path / "there" / "plot.png").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "here").mkdir()

    paths = [str(tmp_path / "there" / name) for name in ("prepared", "plot.png")]
    unpack([f"{line}" for line in pack(paths)], tmp_path / "here")

    [summary] = (tmp_path / "here").rglob("summary.json")
    [plot] = (tmp_path / "here").rglob("plot.png")
    assert summary.read_text() == "{}" and plot.read_bytes() == bytes(range(256)) * 50
    assert not list((tmp_path / "here").rglob("large.bin"))


def test_the_pod_that_reads_results_asks_for_no_gpu_and_runs_no_step(repository):
    made = make_submission("stage1", repository, repository / "params.yaml", "7b", namespace="ns")

    pod = reader_pod("ns", "reader", made.pod, ["a"])

    text = json.dumps(pod)
    assert "nvidia.com/gpu" not in text and "initContainers" not in pod["spec"]
    assert pod["spec"]["securityContext"] == made.pod["securityContext"]
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == {"workspace", "tmp"}


def test_codes_that_no_stage_reads_are_worth_no_job():
    large, small = (load_params(ROOT / "params.yaml", size) for size in ("7b", "smoke"))

    assert is_job("encode", large) and not is_job("encode", small)
    assert is_job("stage1", small)
