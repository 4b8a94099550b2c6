"""Clusters for tests.

CLUSTER_SCRIPT names a script that brings a cluster up (`up`, which prints its KUBECONFIG), adds to it (`add
NAME`, `nodes N GPUS`), builds an image for it (`build TAG DIR [options]`), and takes it down (`down`).
Without one, KUBECONFIG names a cluster that has the operators and, on its nodes, the images that the
manifests name. With neither, the tests are skipped, or fail where CLUSTER=required says that there must be
one.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.k8s.cluster import K8S, ROOT, TINY, Cluster, build, define, eventually, give_up, load_gateway
from tests.k8s.training_jobs import desk
from tests.training.deployment.running_service import version_tags
from tests.training.registry.candidates import METRICS, changed

# Kinds of operators that are not in the cluster that tests use.
DEFINED = ("podmonitor", "servicemonitor", "prometheusrule", "httproute")
Deploy = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """A cluster, brought up for the tests or there already; nothing of ours is in it."""
    script, kubeconfig = os.environ.get("CLUSTER_SCRIPT"), os.environ.get("KUBECONFIG")
    if not script:
        if not kubeconfig:
            give_up("neither CLUSTER_SCRIPT nor KUBECONFIG is set")
        found = Cluster(kubeconfig)
        if found.program is None:
            give_up("KUBECONFIG is set, but there is no kubectl")
        if found.run("get", "namespace", "vargpt", "--ignore-not-found"):
            give_up("that of KUBECONFIG has a namespace vargpt, which is not ours to touch")
        yield found
        found.run("delete", "namespace", "vargpt", "--ignore-not-found")
        return
    was_up = subprocess.run([script, "status"], capture_output=True, check=False).returncode == 0
    up = subprocess.run([script, "up"], capture_output=True, text=True, check=False)
    if up.returncode != 0:
        give_up(f"{script} up failed: {up.stderr.strip()[-300:]}")
    try:
        yield Cluster(up.stdout.strip().rpartition("KUBECONFIG=")[2], script)
    finally:
        if not was_up:
            subprocess.run([script, "down"], capture_output=True, check=True)


@pytest.fixture(scope="session")
def api(running_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with both operators and Kueue, and with what objects must find to be valid."""
    if running_cluster.script:
        for name in ("trainer", "kueue"):
            subprocess.run([running_cluster.script, "add", name], capture_output=True, check=True)
    for kind in (
        "pytorchjobs.kubeflow.org",
        "trainjobs.trainer.kubeflow.org",
        "clusterqueues.kueue.x-k8s.io",
    ):
        if running_cluster.call("get", kind).returncode:
            give_up(f"it has no {kind}")
    for path in (K8S / "platform" / "namespace.yaml", K8S / "platform" / "priorities.yaml"):
        running_cluster.run("apply", "--filename", str(path))
    # A TrainJob is refused while there is no runtime of its name.
    runtime = K8S / "overlays" / "trainjob" / "runtime.yaml"
    eventually(lambda: not running_cluster.call("apply", "--filename", str(runtime)).returncode)
    with define(running_cluster, *DEFINED):
        yield running_cluster


@pytest.fixture(scope="session")
def cluster_with_image(running_cluster: Cluster) -> Cluster:
    """A cluster whose nodes have the image that trains."""
    if running_cluster.script:
        build(running_cluster.script, "training")
    return running_cluster


@pytest.fixture(scope="session")
def platform(running_cluster: Cluster) -> Cluster:
    """A cluster with the platform in small, freshly made: accounts, database, object store and MLflow."""
    if running_cluster.script:
        for name in ("postgres", "mlflow"):
            build(running_cluster.script, name)
        load_gateway(running_cluster)
        running_cluster.run("delete", "namespace", "vargpt", "--ignore-not-found")
    running_cluster.apply_overlay(TINY)
    running_cluster.run("rollout", "status", "deployment/mlflow", "--timeout", "300s")
    jobs = ("job/mlflow-migrate", "job/mlflow-accounts")
    running_cluster.run("wait", "--for=condition=Complete", *jobs, "--timeout", "200s")
    return running_cluster


@pytest.fixture(scope="session")
def prepared_platform(cluster_with_image: Cluster, platform: Cluster) -> Cluster:
    """A cluster with the platform, and with data and backbones on the volume."""
    platform.apply(desk())
    platform.run("apply", "--filename", str(TINY / "backbones.yaml"))
    platform.run("wait", "--for=condition=Ready", "pod/desk", "--timeout", "60s")
    platform.run("wait", "--for=condition=Complete", "job/backbones", "--timeout", "600s")
    return platform


@pytest.fixture(scope="session")
def stage1(prepared_platform: Cluster) -> Cluster:
    """The cluster after `kubectl apply -f k8s/overlays/tiny/stage1.yaml`."""
    cluster = prepared_platform
    cluster.run("apply", "--filename", str(TINY / "stage1.yaml"))
    assert cluster.ended("stage1") == "Succeeded", cluster.logs("stage1")
    return cluster


@pytest.fixture
def registry(mlflow_db, client):
    """A registry: 1 and 4 are good, 2 fails on every request, 3 does not start, 5 is slow, 6 draws worse."""
    client.create_registered_model("vargpt")
    run = client.create_run(client.create_experiment("e")).info.run_id
    for number in range(1, 7):
        tags = version_tags(f"{number}" * 64, changed("draw.all_right", 0.945) if number == 6 else METRICS)
        client.create_model_version("vargpt", f"runs:/{run}/m{number}", run, tags=tags)
    return mlflow_db


@pytest.fixture
def deploy(registry, client, cluster, tmp_path) -> Deploy:
    """Makes a version champion and runs `vargpt deploy`: exit code and what it said."""

    def call(champion: str | None, *arguments: str) -> tuple[int, str]:
        if champion:
            client.set_registered_model_alias("vargpt", "champion", champion)
        environment = {
            **os.environ,
            "KUBECONFIG": cluster.kubeconfig,
            "VARGPT_NAMESPACE": cluster.namespace,
            "MLFLOW_TRACKING_URI": registry,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "training.commands", "deploy", "--by", "tests", *arguments]
        shutil.copy(ROOT / "params.yaml", tmp_path)
        # Decisions are written down where the command runs.
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return call
