"""Clusters for tests.

CLUSTER_SCRIPT names a script that brings a cluster up (`up`, which prints its KUBECONFIG), adds to it (`add
NAME`, `nodes N GPUS`), builds an image for it (`build TAG DIR [options]`), and takes it down (`down`).
Without one, KUBECONFIG names a cluster that has the operators and, on its nodes, the images that the
manifests name. With neither, the tests are skipped, or fail where CLUSTER=required says that there must be
one.
"""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import TINY, Cluster, build, give_up, load_gateway
from tests.k8s.training_jobs import desk


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
