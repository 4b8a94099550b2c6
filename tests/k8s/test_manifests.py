"""What can be said of the manifests without a cluster."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from training.launching.launcher import read_arguments
from training.registry.lineage import md5_on_disk

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
DOCKERFILE = K8S / "images" / "training.Dockerfile"
STAGES = ("stage1", "stage2", "stage3")
MANIFESTS = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")
# Kinds that an operator brings, whose schema lies in the cluster; the pods that they make are checked.
OF_OPERATORS = {"PyTorchJob"}
# The oldest Kubernetes whose schema the manifests follow.
OLDEST = "1.31"
# Volume types that the restricted level of the pod security standards allows.
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def everything() -> list[dict[str, Any]]:
    """All objects under k8s/, as a cluster would get them: the platform's with its namespace."""
    namespace = yaml.safe_load((K8S / "platform" / "kustomization.yaml").read_text())["namespace"]
    found = [item for path in MANIFESTS for item in objects(path)]
    for item in found:
        if item["kind"] != "Namespace":
            item["metadata"].setdefault("namespace", namespace)
    return found


def pods(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that an object makes."""
    match item["kind"]:
        case "PyTorchJob":
            yield from (
                replica["template"]["spec"] for replica in item["spec"]["pytorchReplicaSpecs"].values()
            )
        case "Job" | "Deployment":
            yield item["spec"]["template"]["spec"]


def pod_object(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod as an object of its own, which Kubernetes has a schema for."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a pod, those that come first included."""
    return pod.get("initContainers", []) + pod["containers"]


def named(kind: str, name: str) -> dict[str, Any]:
    """The one object of a kind and name."""
    [found] = [item for item in everything() if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def copied_into_the_image() -> Iterator[tuple[str, str]]:
    """What of the repository goes into the image's working folder, and where there."""
    for sources, target in re.findall(
        r"^COPY (?!requirements)(.+) (\S+)$", DOCKERFILE.read_text(), re.MULTILINE
    ):
        yield from ((source, target) for source in sources.split())


def image_variables() -> dict[str, str]:
    """The environment that the image sets."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.+)$", text, re.MULTILINE) for pair in line.split()
    )


ALL_PODS = [
    pytest.param(pod, item, id=item["metadata"]["name"]) for item in everything() for pod in pods(item)
]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(K8S)))
def test_every_object_follows_the_schema_of_kubernetes_without_a_field_too_many(path, version):
    for item in objects(path):
        if item["kind"] in OF_OPERATORS:
            assert item["apiVersion"] and item["metadata"]["name"]
            items = [pod_object(pod) for pod in pods(item)]
            assert items, "nothing of it is checked"
        else:
            items = [item]
        for found in items:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_misspelt_field_of_a_job_is_found():
    [pod] = pods(objects(K8S / "stage1.yaml")[0])
    pod["containers"][0]["imagePullPolice"] = "Always"

    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(pod_object(pod), OLDEST, strict=True)


def test_the_platform_is_all_that_lies_in_its_folder():
    listed = yaml.safe_load((K8S / "platform" / "kustomization.yaml").read_text())["resources"]

    assert {K8S / "platform" / name for name in listed} == {
        path for path in MANIFESTS if path.parent.name == "platform"
    }


def test_the_namespace_enforces_the_restricted_level():
    labels = named("Namespace", "vargpt")["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_pod_is_restricted_and_cannot_write_to_its_root(pod, item):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= VOLUMES


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_container_states_what_it_needs(pod, item):
    for container in containers(pod):
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_reference_of_a_pod_resolves(pod, item):
    there = {(found["kind"], found["metadata"]["namespace"], found["metadata"]["name"])
             for found in everything() if found["kind"] != "Namespace"}  # fmt: skip
    namespace = item["metadata"]["namespace"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", namespace, claim["claimName"]) in there
    for container in containers(pod):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
        known = {variable["name"] for variable in container.get("env", [])}
        for source in container.get("envFrom", []):
            name = source["configMapRef"]["name"]
            assert ("ConfigMap", namespace, name) in there
            known |= named("ConfigMap", name)["data"].keys()
        for text in container.get("args", []):
            assert set(re.findall(r"\$\((\w+)\)", text)) <= known


def test_all_run_the_same_image_by_the_user_that_it_has():
    found = {
        container["image"] for item in everything() for pod in pods(item) for container in containers(pod)
    }
    users = {pod["securityContext"]["runAsUser"] for item in everything() for pod in pods(item)}

    assert len(found) == 1
    assert [f"USER {user}:{user}" in DOCKERFILE.read_text() for user in users] == [True]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_two_elastic_workers_whose_exit_codes_count(stage):
    [item] = objects(K8S / f"{stage}.yaml")
    job = item["spec"]
    worker = job["pytorchReplicaSpecs"]["Worker"]

    assert set(job["pytorchReplicaSpecs"]) == {"Worker"}
    assert job["elasticPolicy"] == {"rdzvBackend": "c10d", "minReplicas": 2, "maxReplicas": 2}
    assert job["runPolicy"]["activeDeadlineSeconds"] > 0
    assert (worker["replicas"], worker["restartPolicy"], job["nprocPerNode"]) == (2, "ExitCode", "1")
    assert [container["name"] for container in worker["template"]["spec"]["containers"]] == ["pytorch"]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_differ_in_nothing_but_their_name(stage):
    [item] = objects(K8S / f"{stage}.yaml")
    [first] = objects(K8S / "stage1.yaml")
    first["metadata"]["name"] = stage
    [container] = first["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    container["args"][0] = stage

    assert item == first


@pytest.mark.parametrize("name", [*STAGES, "backbones"])
def test_a_job_runs_the_launcher_on_the_stage_of_its_name(name):
    [item] = objects(K8S / f"{name}.yaml")
    [pod] = pods(item)
    [container] = pod["containers"]

    options, passed_on = read_arguments(container["args"])

    assert container["command"] == ["python", "-m", "training.launching"]
    assert options.stage == name
    assert passed_on == ["--params", "/app/params.yaml", "--size", "$(SIZE)"]


def test_jobs_find_the_tracking_server_under_a_name_that_it_answers_to():
    address = named("ConfigMap", "vargpt")["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    [port] = named("Service", "mlflow")["spec"]["ports"]
    [pod] = pods(named("Deployment", "mlflow"))
    [container] = pod["containers"]
    [hosts] = [entry["value"] for entry in container["env"] if entry["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]

    assert address == f"mlflow:{port['port']}"
    assert {"mlflow", address, "mlflow.vargpt.svc.cluster.local", "localhost"} <= set(hosts.split(","))
    assert {"name": "Host", "value": address} in container["readinessProbe"]["httpGet"]["httpHeaders"]


def test_workers_share_one_volume_and_keep_their_working_folder_on_it():
    claim = named("PersistentVolumeClaim", "workspace")

    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in (*STAGES, "backbones"):
        [pod] = pods(objects(K8S / f"{name}.yaml")[0])
        [volume] = [entry["name"] for entry in pod["volumes"] if "persistentVolumeClaim" in entry]
        for container in containers(pod):
            assert {"name": volume, "mountPath": container["workingDir"]} in container["volumeMounts"]


def test_the_image_installs_locked_dependencies_before_it_copies_code():
    lines = DOCKERFILE.read_text().splitlines()
    install = next(number for number, line in enumerate(lines) if "uv pip sync" in line)
    copies = [number for number, line in enumerate(lines) if re.match(r"COPY (model|training|params)", line)]
    commit = lines.index("ARG GIT_COMMIT=unknown")

    assert "ARG BASE=python:3.11-slim" in lines[:install]
    assert install < min(copies) <= max(copies) < commit
    for line in lines:
        assert not re.search(r"pip (install|sync)", line) or "--require-hashes" in line, line


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_the_image_can_be_built_for_either_build_of_torch(torch):
    locks = re.findall(r"^COPY (requirements/\S+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)

    assert len(locks) == 2
    for lock in locks:
        assert (ROOT / lock.replace("${TORCH}", torch)).is_file(), lock


def test_another_commit_is_another_image_even_when_no_file_has_changed():
    lines = DOCKERFILE.read_text().splitlines()
    names = [line.split()[0] for line in lines if line and not line.startswith(("#", " "))]
    instructions = names[len(names) - names[::-1].index("COPY") :]

    assert instructions[:3] == ["ARG", "RUN", "ENV"]


def test_the_build_context_holds_what_the_image_copies():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}

    for source, _ in copied_into_the_image():
        assert (ROOT / source).exists(), source
        assert {source, source.split("/")[0]} & kept, source
    assert ".dvc" not in kept, "the cache of DVC would get into the build context"


def test_the_data_of_the_image_is_restored_on_an_empty_volume(tmp_path):
    app, workspace = tmp_path / "app", tmp_path / "workspace"
    workspace.mkdir()
    for source, target in copied_into_the_image():
        place = app / target.removeprefix("./") / ("" if (ROOT / source).is_dir() else Path(source).name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith((".dvc", "data.dvc")):
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    [pod] = pods(objects(K8S / "backbones.yaml")[0])
    restore = pod["initContainers"][0]
    command = [part.replace("/app/", f"{app}/") for part in (*restore["command"], *restore["args"])]
    here = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    variables = {name: value.replace("/tmp", str(tmp_path)) for name, value in image_variables().items()}

    before = sorted(app.rglob("*"))
    # Twice, as after a pod that was killed.
    for _ in range(2):
        subprocess.run(command, cwd=workspace, env={**variables, **here}, check=True, capture_output=True)

    restored = [path.name for path in (workspace / "data").iterdir()]
    assert (
        md5_on_disk(workspace / "data") == yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"]
    )
    assert restored == ["digits.parquet"]
    assert sorted(app.rglob("*")) == before
