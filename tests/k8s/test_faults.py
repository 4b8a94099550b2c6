"""What goes wrong around a job on a real cluster: it ends all the same, in one run, with the same weights."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import Cluster, eventually
from tests.k8s.training_jobs import (
    assert_ends_like_stage1,
    finished,
    newest_checkpoint,
    seconds_to_next_step,
    start_again,
)

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
# From the death of any node to the next step; the goal is 60.
BOUND_SECONDS = 90
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def script(stage1: Cluster) -> str:
    """What can end parts of the cluster itself."""
    if not stage1.script:
        pytest.skip("only a cluster of CLUSTER_SCRIPT can be broken")
    return stage1.script


def pods_of(cluster: Cluster, job: str) -> list[str]:
    found = cluster.get("pods", "--selector", f"training.kubeflow.org/job-name={job}")["items"]
    return [pod["metadata"]["name"] for pod in found]


def test_a_job_that_was_suspended_goes_on_when_it_is_resumed(stage1, tmp_path, record_property):
    start_again(stage1, "suspended")

    patch_suspend(stage1, "suspended", True)
    eventually(lambda: not pods_of(stage1, "suspended"))
    saved = newest_checkpoint(stage1, "suspended")
    patch_suspend(stage1, "suspended", False)

    lost = assert_ends_like_stage1(stage1, "suspended", tmp_path)
    record_property("lost", lost)
    assert saved > 0 and stage1.starts("suspended") == 4
    # Workers save before they go.
    assert (lost["restarts"], lost["repeated_steps"]) == (1, 0)


def patch_suspend(cluster: Cluster, job: str, is_suspended: bool) -> None:
    patch = json.dumps({"spec": {"runPolicy": {"suspend": is_suspended}}})
    cluster.run("patch", "pytorchjob", job, "--type", "merge", "--patch", patch)


def test_training_goes_on_while_the_tracking_server_and_its_database_restart(
    stage1, tmp_path, record_property
):
    start_again(stage1, "untracked")

    components = "app.kubernetes.io/component in (tracking, database)"
    deleted = stage1.run("delete", "pod", "--selector", components).decode()
    assert "mlflow" in deleted and "postgres" in deleted

    # Of the new pods, which are to be told what the old ones were not.
    stage1.run("rollout", "status", "deployment/mlflow", "--timeout", "300s")
    lost = assert_ends_like_stage1(stage1, "untracked", tmp_path)
    record_property("lost", lost)
    assert lost["restarts"] == 0


def test_training_goes_on_without_an_api_server(stage1, script, tmp_path, record_property):
    start_again(stage1, "headless")
    saved = newest_checkpoint(stage1, "headless")

    subprocess.run([script, "stop", "kube-apiserver"], check=True)
    time.sleep(60)
    subprocess.run([script, "start", "kube-apiserver"], check=True)

    eventually(lambda: stage1.call("get", "nodes").returncode == 0)
    assert newest_checkpoint(stage1, "headless") > saved or "headless" in finished(stage1)
    lost = assert_ends_like_stage1(stage1, "headless", tmp_path)
    record_property("lost", lost)
    assert stage1.starts("headless") == 2 and lost["restarts"] == 0


@pytest.fixture
def second_node(stage1: Cluster, script: str) -> Iterator[str]:
    """Another real node, which may be lost."""
    before = names_of_nodes(stage1)
    subprocess.run([script, "join"], check=True)
    [name] = names_of_nodes(stage1) - before
    yield name
    subprocess.run([script, "rejoin", name], check=True)
    stage1.run("taint", "node", name, f"{OUT_OF_SERVICE}-")
    stage1.run("cordon", name)


def names_of_nodes(cluster: Cluster) -> set[str]:
    return {node["metadata"]["name"] for node in cluster.get("nodes")["items"]}


def test_a_node_that_dies_with_a_worker_costs_what_was_learned_since_the_last_checkpoint(
    stage1, script, second_node, tmp_path, record_property
):
    start_again(stage1, "bereft")
    before = nodes_of(stage1, "bereft")
    assert second_node in before.values() and len(set(before.values())) == 2

    crashed = time.time()
    subprocess.run([script, "crash", second_node], check=True)
    saved = newest_checkpoint(stage1, "bereft")
    # What an administrator, or the cloud's controller, says of a machine that is gone.
    stage1.run("taint", "node", second_node, OUT_OF_SERVICE)

    seconds = seconds_to_next_step(stage1, "bereft", after=saved, since=crashed)
    record_property("lost_worker", next(pod for pod, node in before.items() if node == second_node))
    record_property("seconds_from_crash_to_next_step", round(seconds))
    lost = assert_ends_like_stage1(stage1, "bereft", tmp_path)
    record_property("lost", lost)
    assert lost["restarts"] >= 1
    assert seconds < BOUND_SECONDS


def nodes_of(cluster: Cluster, job: str) -> dict[str, str]:
    """The node of each pod of a job."""
    found = cluster.get("pods", "--selector", f"training.kubeflow.org/job-name={job}")["items"]
    return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in found}
