"""A cluster for tests: kubectl, the images that pods run, and what to do where there is none."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from training.cluster.images import image_names

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
TINY = K8S / "overlays" / "tiny"
# Of operators that a cluster of tests need not have: their kinds as the API server must know them.
DEFINITIONS = Path(__file__).parent / "definitions"
IMAGES = image_names(ROOT)
# How the gateway is called where there is no registry.
LOCAL_GATEWAY = "kube.local/versitygw:v1.8.0"
ASK_MLFLOW = """
import base64, os, sys, urllib.request
address = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/" + sys.argv[1]
body = sys.argv[2].encode() if sys.argv[2:] else None
account = os.environ["MLFLOW_TRACKING_USERNAME"] + ":" + os.environ["MLFLOW_TRACKING_PASSWORD"]
headers = {"Content-Type": "application/json"}
headers["Authorization"] = "Basic " + base64.b64encode(account.encode()).decode()
print(urllib.request.urlopen(urllib.request.Request(address, body, headers)).read().decode())
"""


class Cluster:
    """kubectl, in one namespace.

    Args:
        script: That brought the cluster up and can add to it; None for a cluster of somebody else's.
    """

    def __init__(self, kubeconfig: str, script: str | None = None, namespace: str = "vargpt") -> None:
        beside = Path(kubeconfig).parent / "bin"
        self.program = shutil.which("kubectl", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
        self.kubeconfig, self.script, self.namespace = kubeconfig, script, namespace

    def call(self, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Runs kubectl, whatever comes of it."""
        command = [
            str(self.program),
            "--kubeconfig",
            self.kubeconfig,
            "--namespace",
            self.namespace,
            *arguments,
        ]
        return subprocess.run(command, input=data, capture_output=True, check=False)

    def run(self, *arguments: str, data: bytes | None = None, is_checked: bool = True) -> bytes:
        """What kubectl says to these arguments; its complaint is part of the failure."""
        done = self.call(*arguments, data=data)
        assert not is_checked or done.returncode == 0, f"{arguments}: {done.stderr.decode()}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them."""
        return json.loads(self.run("get", *arguments, "--output", "json"))

    def apply(self, *items: dict[str, Any]) -> None:
        """Creates objects."""
        for item in items:
            self.run("apply", "--filename", "-", data=json.dumps(item).encode())

    def apply_overlay(self, folder: Path) -> None:
        """Applies a kustomization, with the gateway's image as it is called here."""
        text = self.run("kustomize", str(folder)).decode()
        if self.script:
            text = text.replace(IMAGES["versitygw"], LOCAL_GATEWAY)
        self.run("apply", "--filename", "-", data=text.encode())

    def logs(self, job: str) -> str:
        """What the workers of a job said, those that are still there."""
        selector = f"training.kubeflow.org/job-name={job}"
        return self.run("logs", "--prefix", "--tail=-1", "--selector", selector, is_checked=False).decode()

    def ended(self, job: str, seconds: float = 240) -> str:
        """Waits for the end of a PyTorchJob: Succeeded or Failed."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            conditions = self.get("pytorchjob", job).get("status", {}).get("conditions", [])
            for condition in conditions:
                if condition["type"] in ("Succeeded", "Failed") and condition["status"] == "True":
                    return condition["type"]
            time.sleep(0.5)
        raise AssertionError(f"{job} has not ended after {seconds} s: {conditions}\n{self.logs(job)}")

    def starts(self, job: str) -> int:
        """How many workers were ever made for a job."""
        events = self.get("events", "--field-selector", f"involvedObject.name={job}")["items"]
        return sum(event.get("count") or 1 for event in events if event["reason"] == "SuccessfulCreatePod")

    def on_volume(self, *command: str) -> bytes:
        """What a command says whose working folder is the shared volume."""
        return self.run("exec", "desk", "--", *command)

    def fetch(self, into: Path, *paths: str) -> Path:
        """Copies folders of the volume to this machine."""
        archive = io.BytesIO(self.on_volume("tar", "--create", *paths))
        with tarfile.open(fileobj=archive) as files:
            files.extractall(into, filter="data")
        return into

    def ask_mlflow(self, method: str, **body: Any) -> dict[str, Any]:
        """What the tracking server says to a pod that calls it by name, under the trainers' account."""
        text = [json.dumps(body)] if body else []
        return json.loads(self.on_volume("python", "-c", ASK_MLFLOW, method, *text))


def objects(text: bytes | str) -> list[dict[str, Any]]:
    """The objects in a text of YAML."""
    return [item for item in yaml.safe_load_all(text) if item]


@contextmanager
def define(cluster: Cluster, *names: str) -> Iterator[None]:
    """Makes kinds of tests/k8s/definitions known to an API server that lacks them, until the block ends."""
    files = [DEFINITIONS / f"{name}.json" for name in names]
    missing = [str(file) for file in files if cluster.call("get", "--filename", str(file)).returncode]
    for file in missing:
        cluster.run("create", "--filename", file)
        cluster.run("wait", "--for=condition=Established", "--filename", file, "--timeout", "60s")
    yield
    for file in missing:
        cluster.run("delete", "--filename", file)


@contextmanager
def new_namespace(cluster: Cluster, name: str, *items: dict[str, Any]) -> Iterator[Cluster]:
    """The cluster in a restricted namespace of a test's own with these objects, until the block ends."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.run("delete", "namespace", name, "--ignore-not-found")
    found = Cluster(cluster.kubeconfig, cluster.script, name)
    found.apply(namespace, *items)
    yield found
    cluster.run("delete", "namespace", name)


def idle_pod(name: str, namespace: str, labels: dict[str, str], secret: str | None) -> dict[str, Any]:
    """A pod with the tracking server's image that does nothing."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    sources = [{"configMapRef": {"name": "vargpt"}}, {"secretRef": {"name": secret}}] if secret else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "idle",
                    "image": IMAGES["vargpt-mlflow"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-m", "http.server", "3000"],
                    "envFrom": sources,
                    "resources": {
                        "requests": {"cpu": "20m", "memory": "64Mi"},
                        "limits": {"memory": "1Gi"},
                    },
                    "securityContext": security,
                }
            ],
        },
    }


def eventually(is_so: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until it is so."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it never became so"
        time.sleep(1)


def head() -> str:
    """The commit of the tree, or that it has none."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def about_images() -> list[str]:
    """The build arguments that say which code and which locks an image holds."""
    command = ["sh", str(K8S / "images" / "about.sh"), "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def build(script: str, name: str) -> None:
    """Builds an image of the tree as it lies, for CPUs, and makes it known to the cluster."""
    own = K8S / "images" / f"{name}.Dockerfile"
    file = ["--file", str(own)] if own.is_file() else ["--file", str(K8S / "images" / "Dockerfile")]
    options = file if own.is_file() else [*file, "--target", name, "--build-arg", "TORCH=cpu"]
    options += ["--build-arg", "BASE=localhost/python:3.11", *about_images()]
    command = [script, "build", IMAGES[f"vargpt-{name}"], str(ROOT), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def load_gateway(cluster: Cluster) -> None:
    """Makes the image of the S3 gateway known to the cluster, where its script brings one along."""
    archive = Path(cluster.kubeconfig).parent / "bin" / "addons" / "s3" / "image.tar"
    subprocess.run([str(cluster.script), "load", str(archive)], capture_output=True, check=True)


def give_up(reason: str) -> NoReturn:
    """Ends a test that has no cluster: skipped, or failed where there must be one."""
    (pytest.fail if os.environ.get("CLUSTER") == "required" else pytest.skip)(f"no cluster: {reason}")
