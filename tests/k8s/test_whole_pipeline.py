"""The whole on a real cluster, policies in force: k8s/cluster-demo.sh, from an empty cluster to an answer.

It deletes the namespace of the platform before and afterwards: nothing else may use the cluster meanwhile.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serving.client import Answer, chat
from tests.k8s.cluster import K8S, ROOT, Cluster
from tests.k8s.training_jobs import desk
from training.commands.options import MODEL_NAME
from training.digits.scenes import SIDE
from training.registry.lineage import WEIGHTS_TAG
from training.registry.trained_versions import TRAINED_MODEL, TRAINED_TAG

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Images are built, too; the demo itself is to take a quarter of an hour.
LIMIT_SECONDS = 2400


@dataclass(frozen=True)
class Demo:
    """The demo's folder, what it said, and the cluster that it has left."""

    folder: Path
    said: str
    cluster: Cluster

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as the demo runs its own; its output is one text."""
        environment = {
            **os.environ,
            "KUBECONFIG": self.cluster.kubeconfig,
            "VARGPT_NAMESPACE": self.cluster.namespace,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        # The folder has code of its own.
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def demo(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """What `make cluster-demo` leaves of a cluster in which nothing of ours was."""
    if not running_cluster.script:
        pytest.skip("the demo brings up a cluster of CLUSTER_SCRIPT, or one of kind")
    running_cluster.run("delete", "namespace", "vargpt", "--ignore-not-found")
    folder = tmp_path_factory.mktemp("whole")
    environment = {
        **os.environ,
        "CLUSTER_SCRIPT": running_cluster.script,
        "PYTHON": sys.executable,
        "DEMO_FOLDER": str(folder / "demo"),
        "SIZE": "smoke",
    }
    environment.pop("PYTHONPATH", None)
    # `timeout` ends what the script has started, too; in a file, as a pipe would be waited for.
    command = ["timeout", "--kill-after", "30", str(LIMIT_SECONDS), "sh", str(K8S / "cluster-demo.sh")]
    with (folder / "log").open("w") as log:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    said = (folder / "log").read_text()
    assert code == 0, f"the demo ended with {code}:\n{said[-4000:]}"
    running_cluster.apply(desk())
    running_cluster.run("wait", "--for=condition=Ready", "pod/desk", "--timeout", "60s")
    yield Demo(folder / "demo", said, running_cluster)
    running_cluster.run("delete", "namespace", "vargpt")


@pytest.fixture(scope="module")
def champion(demo: Demo) -> dict[str, Any]:
    """The version of the served model that the tracking server calls champion."""
    asked = f"registered-models/alias?name={MODEL_NAME}&alias=champion"
    return demo.cluster.ask_mlflow(asked)["model_version"]


@pytest.fixture(scope="module")
def address(demo: Demo) -> Iterator[str]:
    """Where the deployed service answers on this machine."""
    with forwarded(demo.cluster, "service/vargpt", 80) as found:
        yield found


@contextmanager
def forwarded(cluster: Cluster, target: str, port: int) -> Iterator[str]:
    """The address under which a port of the cluster is reached from here, until the block ends."""
    command = [str(cluster.program), "--kubeconfig", cluster.kubeconfig, "--namespace", cluster.namespace]
    command += ["port-forward", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            first = process.stdout.readline()
            match = re.search(r"127\.0\.0\.1:(\d+)", first)
            assert match, f"{target} is not reached: {first!r}"
            yield f"http://{match[0]}"
        finally:
            process.terminate()


def tags_of(version: dict[str, Any]) -> dict[str, str]:
    """Tags of a model version, as MLflow's API gives them."""
    return {tag["key"]: tag["value"] for tag in version["tags"]}


def stage3_of(demo: Demo) -> dict[str, Any]:
    """What `dvc repro` has brought home of the last stage."""
    return json.loads((demo.folder / "artifacts" / "stage3.json").read_text())


def test_every_stage_of_dvc_repro_was_a_job_of_the_cluster(demo):
    for stage in ("prepare", "backbones", "encode", "stage1", "stage2", "stage3", "share", "evaluate"):
        assert f"Running stage '{stage}'" in demo.said

    jobs = demo.cluster.get("pytorchjobs")["items"]
    assert sorted(job["metadata"]["labels"]["vargpt.io/stage"] for job in jobs) == [
        "stage1",
        "stage2",
        "stage3",
    ]


def test_the_champion_is_made_from_the_version_that_the_trainers_registered(demo, champion):
    name, _, number = tags_of(champion)[TRAINED_TAG].partition("/")
    assert name == TRAINED_MODEL

    trained = demo.cluster.ask_mlflow(f"model-versions/get?name={name}&version={number}")["model_version"]

    assert trained["status"] == "READY"
    weights = stage3_of(demo)["weights_sha256"]
    assert tags_of(trained)[WEIGHTS_TAG] == weights and tags_of(champion)[WEIGHTS_TAG] == weights


def test_the_champion_is_deployed_with_its_weights(demo, champion):
    deployment = demo.cluster.get("deployment", "vargpt")

    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["vargpt.io/version"] == champion["version"]
    assert stage3_of(demo)["weights_sha256"].startswith(labels["vargpt.io/weights"])
    assert deployment["status"]["readyReplicas"] == deployment["spec"]["replicas"] >= 1


def test_the_deployed_champion_answers_with_text(address, champion):
    answer: Answer = chat(address, "Which digits do you know?", modalities=["text"], seed=7)

    assert answer.text.strip() and not answer.pictures
    assert answer.model_version == champion["version"]


def test_the_deployed_champion_answers_with_a_picture(address):
    body = {"prompt": "Draw a red seven on white.", "seed": 7}

    reply = httpx.post(f"{address}/v1/images/generations", json=body, timeout=300)

    assert reply.is_success, reply.text
    [drawn] = reply.json()["data"]
    with Image.open(io.BytesIO(base64.b64decode(drawn["b64_json"]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (SIDE, SIDE))
        assert any(low < high for low, high in picture.convert("RGB").getextrema()), "it has one colour"


def test_what_the_demo_says_it_was_answered_is_there(demo):
    reply = demo.said.split("== a question")[1].split("== done")[0]

    lines = reply.partition("\n")[2].strip().splitlines()
    assert lines, "neither text nor a picture"
    for line in lines:
        if line.startswith("picture: "):
            with Image.open(demo.folder / line.removeprefix("picture: ")) as picture:
                assert picture.size == (SIDE, SIDE)


def test_a_second_dvc_repro_does_nothing(demo):
    before = demo.cluster.run("get", "pytorchjobs,jobs", "--output", "name")

    done = demo.run(sys.executable, "-m", "dvc", "repro")

    assert done.returncode == 0, done.stdout
    assert "Running stage" not in done.stdout
    assert demo.cluster.run("get", "pytorchjobs,jobs", "--output", "name") == before
