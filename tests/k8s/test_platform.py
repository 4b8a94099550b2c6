"""What the platform grants and refuses, on a real cluster: MLflow's accounts, and the network."""

import json
from collections.abc import Iterator

import pytest
import yaml

from tests.k8s.cluster import K8S, Cluster, eventually, idle_pod, new_namespace

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Writes an artifact that goes in parts and one that does not, and reads both back.
WRITE_ARTIFACTS = """
import os, pathlib, mlflow
mlflow.set_experiment("vargpt")
sizes = {"small": 1 << 10, "large": 120 << 20}
with mlflow.start_run() as run:
    for name, size in sizes.items():
        pathlib.Path("/tmp", name).write_bytes(os.urandom(size))
        mlflow.log_artifact(f"/tmp/{name}", "files")
for name in sizes:
    address = f"runs:/{run.info.run_id}/files/{name}"
    found = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path="/tmp/back")
    assert pathlib.Path(found).read_bytes() == pathlib.Path("/tmp", name).read_bytes(), name
print(run.info.run_id)
"""
# The statuses of what one account does to both registered models: making a version, moving an alias.
WRITE_MODELS = """
import os, sys, requests
from mlflow import MlflowClient
api, account = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/", tuple(sys.argv[1:3])
def call(path, **body):
    return requests.post(api + path, json=body, auth=account, timeout=60).status_code
source = f"mlflow-artifacts:/1/{sys.argv[3]}/artifacts/files"
for model in ("vargpt-trained", "vargpt"):
    print(call("model-versions/create", name=model, source=source, run_id=sys.argv[3]),
          call("registered-models/alias", name=model, alias="champion", version="1"))
"""
ASK_WITHOUT_ACCOUNT = """
import os, requests
api = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/"
print(requests.get(api + "experiments/get?experiment_id=0", timeout=60).status_code)
"""
CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=4).close()
        print(address, "open")
    except OSError as error:
        print(address, type(error).__name__)
"""


def python(cluster: Cluster, pod: str, program: str, *arguments: str) -> str:
    """What a program prints that runs in a pod."""
    return cluster.run("exec", pod, "--", "python", "-c", program, *arguments).decode()


@pytest.fixture(scope="module")
def trainer(platform: Cluster) -> Cluster:
    """The platform with a pod `trainer-desk` under the trainers' account, where workers' rules hold."""
    labels = {"app.kubernetes.io/component": "training"}
    platform.apply(idle_pod("trainer-desk", "vargpt", labels, "mlflow-trainer"))
    platform.run("wait", "--for=condition=Ready", "pod/trainer-desk", "--timeout", "120s")
    return platform


@pytest.fixture(scope="module")
def run_id(trainer: Cluster) -> str:
    """A run with artifacts, written by a trainer."""
    return python(trainer, "trainer-desk", WRITE_ARTIFACTS).split()[-1]


def test_artifacts_of_any_size_come_back_as_they_were(run_id):
    assert len(run_id) == 32


def account_of(cluster: Cluster, secret: str) -> tuple[str, str]:
    """Name and password of an account of the overlay for laptops."""
    made = yaml.safe_load((K8S / "overlays" / "tiny" / "kustomization.yaml").read_text())["secretGenerator"]
    [literals] = [entry["literals"] for entry in made if entry["name"] == secret]
    name, password = (text.partition("=")[2] for text in literals)
    return name, password


def test_trainers_write_a_model_of_their_own_and_only_the_promoter_the_one_that_is_served(trainer, run_id):
    said = {
        secret: python(trainer, "trainer-desk", WRITE_MODELS, *account_of(trainer, secret), run_id).split()
        for secret in ("mlflow-trainer", "mlflow-promoter")
    }

    may, may_not = ["200", "200"], ["403", "403"]
    assert said == {"mlflow-trainer": may + may_not, "mlflow-promoter": may_not + may}


def test_nobody_without_an_account_reads_anything(trainer):
    assert python(trainer, "trainer-desk", ASK_WITHOUT_ACCOUNT).strip() == "401"


@pytest.fixture(scope="module")
def stranger(platform: Cluster) -> Iterator[Cluster]:
    """A pod in another namespace; in ours, one with the labels of the service and a registered lineage."""
    platform.run(
        "patch", "configmap", "registered-versions", "--patch", '{"data": {"versions": "1:0123456789ab"}}'
    )
    labels = {
        "app.kubernetes.io/component": "serving",
        "vargpt.io/version": "1",
        "vargpt.io/weights": "0123456789ab",
    }
    pod = json.dumps(idle_pod("answers", "vargpt", labels, None)).encode()
    # The policy learns of the list a moment later.
    eventually(lambda: not platform.call("apply", "--filename", "-", data=pod).returncode)
    with new_namespace(platform, "stranger", idle_pod("stranger", "stranger", {}, None)) as found:
        platform.run("wait", "--for=condition=Ready", "pod/answers", "--timeout", "120s")
        found.run("wait", "--for=condition=Ready", "pod/stranger", "--timeout", "120s")
        yield found
    platform.run("delete", "pod", "answers")


def test_a_stranger_reaches_the_serving_port_and_nothing_else(stranger, trainer):
    serving = trainer.get("pod", "answers")["status"]["podIP"]
    worker = trainer.get("pod", "trainer-desk")["status"]["podIP"]
    closed = [
        f"{name}.vargpt:{port}"
        for name, port in (("mlflow", 5000), ("postgres", 5432), ("object-store", 7070))
    ]
    closed.append(f"{worker}:3000")

    said = dict(
        line.split()
        for line in python(stranger, "stranger", CONNECT, f"{serving}:3000", *closed).splitlines()
    )

    assert said == {f"{serving}:3000": "open", **dict.fromkeys(closed, "TimeoutError")}


def test_a_worker_reaches_the_tracking_server_and_the_object_store_but_no_database(trainer):
    said = python(trainer, "trainer-desk", CONNECT, "mlflow:5000", "object-store:7070", "postgres:5432")

    assert said.split()[1::2] == ["open", "open", "TimeoutError"]


def test_the_service_reaches_nothing(stranger, trainer):
    said = python(trainer, "answers", CONNECT, "mlflow:5000", "postgres:5432", "object-store:7070")

    assert said.split()[1::2] == ["TimeoutError"] * 3
