"""Training as jobs on a real cluster, compared with the same training on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from tests.k8s.cluster import ROOT, TINY, eventually, head
from tests.k8s.training_jobs import (
    assert_ends_like_stage1,
    assert_same_weights,
    manifest,
    newest_checkpoint,
    start_again,
    wait_for_checkpoint,
)
from training.registry.lineage import WEIGHTS_TAG
from training.registry.trained_versions import TRAINED_MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_stage_1_succeeds_in_two_workers_that_never_restarted(stage1):
    pods = stage1.get("pods", "--selector", "training.kubeflow.org/job-name=stage1")["items"]

    # An elastic job has succeeded when its first worker has; one that is still ending then may be gone.
    assert len(pods) in (1, 2)
    assert stage1.starts("stage1") == 2


def test_the_run_and_its_metrics_are_in_the_tracking_server(stage1):
    experiments = stage1.ask_mlflow("experiments/search?max_results=100")["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]

    runs = stage1.ask_mlflow("runs/search", experiment_ids=ids, filter="status = 'FINISHED'")["runs"]

    pointer = json.loads(stage1.on_volume("cat", "artifacts/stage1.json"))
    [run] = [run for run in runs if run["info"]["run_id"] == pointer["run_id"]]
    assert any("loss" in metric["key"] for metric in run["data"]["metrics"])


def test_what_the_stage_published_is_a_version_of_the_trainers_model(stage1):
    pointer = json.loads(stage1.on_volume("cat", "artifacts/stage1.json"))
    filtered = urlencode({"filter": f"name = '{TRAINED_MODEL}' AND run_id = '{pointer['run_id']}'"})

    [version] = stage1.ask_mlflow(f"model-versions/search?{filtered}")["model_versions"]

    assert version["status"] == "READY"
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags[WEIGHTS_TAG] == pointer["weights_sha256"]


def test_the_weights_are_those_of_two_processes_on_this_machine(stage1, tmp_path):
    stage1.fetch(tmp_path / "cluster", "outputs/stage1/model")
    stage1.fetch(tmp_path / "local", "prepared", "outputs/backbones")
    size = stage1.get("configmap", "vargpt")["data"]["SIZE"]
    command = [sys.executable, "-m", "training.launching", "stage1", "--nproc", "2"]
    command += ["--params", str(ROOT / "params.yaml"), "--size", size]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}

    subprocess.run(command, cwd=tmp_path / "local", env=environment, check=True, timeout=300)

    model = Path("outputs", "stage1", "model")
    assert_same_weights(tmp_path / "local" / model, tmp_path / "cluster" / model)


def test_workers_deleted_in_mid_training_come_back_and_end_with_the_same_weights(stage1, tmp_path):
    start_again(stage1, "again")

    stage1.run("delete", "pod", "again-worker-1")
    wait_for_checkpoint(stage1, "again", after=newest_checkpoint(stage1, "again"))
    stage1.run("delete", "pod", "again-worker-0", "--grace-period=0", "--force")

    assert_ends_like_stage1(stage1, "again", tmp_path)
    assert stage1.starts("again") > 4


def test_a_trainjob_of_the_same_stage_ends_with_the_same_weights(stage1, tmp_path):
    if stage1.script:
        subprocess.run([stage1.script, "add", "trainer"], capture_output=True, check=True)
    runtime = TINY / "trainjob" / "runtime.yaml"
    job = yaml.safe_load(runtime.with_name("stage1.yaml").read_text())
    job["metadata"]["name"] = "second"
    job["spec"]["trainer"]["args"] += ["--outputs", "second"]
    stage1.on_volume("mkdir", "-p", "second")
    stage1.on_volume("cp", "--recursive", "outputs/backbones", "second/")
    eventually(lambda: not stage1.call("apply", "--filename", str(runtime)).returncode)
    eventually(lambda: not stage1.call("apply", "--filename", "-", data=json.dumps(job).encode()).returncode)

    stage1.run("wait", "--for=condition=Complete", "trainjob/second", "--timeout", "300s")

    stage1.fetch(tmp_path, "outputs/stage1/model", "second/stage1/model")
    assert_same_weights(tmp_path / "second" / "stage1" / "model", tmp_path / "outputs" / "stage1" / "model")


def test_a_mistake_ends_a_job_at_the_first_attempt_with_the_reason_in_its_log(prepared_platform):
    cluster = prepared_platform
    cluster.apply(manifest("stage1", "wrong", "--size", "enormous"))

    assert cluster.ended("wrong") == "Failed"
    assert cluster.starts("wrong") == 2
    assert "enormous" in cluster.logs("wrong")


def test_the_image_knows_its_commit_and_can_change_nothing_of_itself(prepared_platform):
    said = prepared_platform.on_volume(
        "sh", "-c", "echo $GIT_COMMIT; id -u; touch /app/file || echo read-only"
    ).decode()

    assert said.split() == [head(), "10001", "read-only"]
