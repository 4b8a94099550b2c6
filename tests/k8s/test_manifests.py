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

from serving.config import Limits
from training.cluster.images import image_names
from training.launching.launcher import read_arguments
from training.registry.data_pointer import md5_on_disk

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
TINY = K8S / "overlays" / "tiny"
DOCKERFILE = K8S / "images" / "Dockerfile"
STAGES = ("stage1", "stage2", "stage3")
# A patch is no object; images are the matter of a test of their own.
MANIFESTS = sorted(
    path for path in K8S.rglob("*.yaml") if path.name not in ("kustomization.yaml", "gpu.yaml")
)
# Kinds that an operator brings, whose schema lies in the cluster (test_validation.py asks it); the pods that
# they make are checked here.
OF_OPERATORS = ("kubeflow.org/", "trainer.kubeflow.org/", "kueue.x-k8s.io/", "monitoring.coreos.com/")
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
# Made by the user (k8s/platform/secrets.sh), by an operator's webhook, or from files of a kustomization.
SECRETS = {"postgres", "mlflow", "object-store", "mlflow-trainer", "mlflow-promoter", "dvc-remote"}
GENERATED = {"mlflow-scripts"}


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def everything() -> list[tuple[Path, dict[str, Any]]]:
    """All objects under k8s/, with the files that they are in."""
    return [(path, item) for path in MANIFESTS for item in objects(path)]


def templates(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The templates of the pods that an object makes."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "PyTorchJob":
            yield from (replica["template"] for replica in spec["pytorchReplicaSpecs"].values())
        case "TrainingRuntime":
            yield from (
                replicated["template"]["spec"]["template"]
                for replicated in spec["template"]["spec"]["replicatedJobs"]
            )
        case "Job" | "Deployment" | "StatefulSet":
            yield spec["template"]


def pods(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that an object makes."""
    yield from (template["spec"] for template in templates(item))


def pod_object(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod as an object of its own, which Kubernetes has a schema for."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a pod, those that come first included."""
    return pod.get("initContainers", []) + pod["containers"]


def named(kind: str, name: str) -> dict[str, Any]:
    """The one object of a kind and name."""
    [found] = [item for _, item in everything() if (item["kind"], item["metadata"]["name"]) == (kind, name)]
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
    pytest.param(pod, item, id=f"{path.parent.relative_to(K8S)}/{item['metadata']['name']}")
    for path, item in everything()
    for pod in pods(item)
]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(K8S)))
def test_every_object_follows_the_schema_of_kubernetes_without_a_field_too_many(path, version):
    for item in objects(path):
        if item["apiVersion"].startswith(OF_OPERATORS):
            items = [pod_object(pod) for pod in pods(item)]
        else:
            items = [item]
        for found in items:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_misspelt_field_of_a_job_is_found():
    [pod] = pods(objects(K8S / "stage1.yaml")[0])
    pod["containers"][0]["imagePullPolice"] = "Always"

    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(pod_object(pod), OLDEST, strict=True)


@pytest.mark.parametrize(
    "folder", ["platform", "platform/mlflow", "platform/postgres", "platform/object-store"]
)
def test_a_kustomization_lists_all_that_lies_in_its_folder(folder):
    listed = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())["resources"]

    assert {K8S / folder / name for name in listed if name.endswith(".yaml")} == {
        path for path in MANIFESTS if path.parent == K8S / folder
    }


def test_every_object_has_its_namespace_and_no_object_of_the_whole_cluster_has_one():
    for path, item in everything():
        is_global = item["kind"].startswith("ValidatingAdmission") or item["kind"] in (
            "Namespace",
            "PriorityClass",
            "ResourceFlavor",
            "ClusterQueue",
        )
        assert item["metadata"].get("namespace") == (None if is_global else "vargpt"), (path, item["kind"])


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
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_pod_has_an_account_of_its_own_kind(pod, item):
    assert named("ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("pod", "item"), ALL_PODS)
def test_every_reference_of_a_pod_resolves(pod, item):
    there = {(found["kind"], found["metadata"]["name"]) for _, found in everything()}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}

    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in there
        if secret := volume.get("secret"):
            assert secret["secretName"] in SECRETS
        if found := volume.get("configMap"):
            assert ("ConfigMap", found["name"]) in there or found["name"] in GENERATED
    if priority := pod.get("priorityClassName"):
        assert ("PriorityClass", priority) in there
    for container in containers(pod):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | claims
        known = {variable["name"] for variable in container.get("env", [])}
        for variable in container.get("env", []):
            if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert secret["name"] in SECRETS
        for source in container.get("envFrom", []):
            if secret := source.get("secretRef"):
                assert secret["name"] in SECRETS
            else:
                known |= named("ConfigMap", source["configMapRef"]["name"])["data"].keys()
        for text in container.get("args", []):
            assert set(re.findall(r"\$\((\w+)\)", text)) <= known


def test_no_secret_is_in_a_manifest_but_those_of_a_laptop():
    assert not [path for path, item in everything() if item["kind"] == "Secret"]
    made = {name for name in SECRETS if f"secret {name}" in (K8S / "platform" / "secrets.sh").read_text()}
    tiny = yaml.safe_load((TINY / "kustomization.yaml").read_text())["secretGenerator"]

    # The account of a remote is the user's own.
    assert made | {"mlflow-trainer", "mlflow-promoter"} == SECRETS - {"dvc-remote"}
    assert {secret["name"] for secret in tiny} == SECRETS - {"dvc-remote"}


def test_every_image_is_named_in_one_place_and_runs_as_its_own_user():
    names = image_names(ROOT)
    rendered = {names["vargpt-training"], names["vargpt-packaging"]}

    for path, item in everything():
        for pod in pods(item):
            assert pod["securityContext"]["runAsUser"] == 10001
            for container in containers(pod):
                allowed = rendered if "Rendered by" in path.read_text() else names.keys()
                assert container["image"] in allowed, path
    for file in (K8S / "images").glob("*Dockerfile"):
        stages = re.findall(r"^USER (.+)$", file.read_text(), re.MULTILINE)
        assert stages and set(stages) == {"10001:10001"}, file


def test_everything_that_may_be_reached_in_the_namespace_is_listed():
    policies = [item for _, item in everything() if item["kind"] == "NetworkPolicy"]
    [deny] = [item for item in policies if item["metadata"]["name"] == "default-deny"]
    labels = [template["metadata"]["labels"] for _, item in everything() for template in templates(item)]

    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        assert any(wanted.items() <= found.items() for found in labels), (
            f"{policy['metadata']['name']}: no pod"
        )


def test_pods_of_other_namespaces_reach_the_service_and_its_front_alone():
    open_ports = {"serving": 3000, "front": 8080}
    for _, item in everything():
        if item["kind"] == "NetworkPolicy":
            for rule in item["spec"].get("ingress", []):
                # Without a list of sources there are all.
                if any(
                    source.get("namespaceSelector") == {}
                    for source in rule.get("from", [{"namespaceSelector": {}}])
                ):
                    port = open_ports[item["metadata"]["name"]]
                    assert rule["ports"] == [{"protocol": "TCP", "port": port}]


@pytest.mark.parametrize("stage", STAGES)
def test_a_small_stage_is_two_elastic_workers_whose_exit_codes_count(stage):
    [item] = objects(TINY / f"{stage}.yaml")
    job = item["spec"]
    worker = job["pytorchReplicaSpecs"]["Worker"]

    assert set(job["pytorchReplicaSpecs"]) == {"Worker"}
    assert job["elasticPolicy"] == {"rdzvBackend": "c10d", "minReplicas": 2, "maxReplicas": 2}
    assert job["runPolicy"]["activeDeadlineSeconds"] > 0
    assert (worker["replicas"], worker["restartPolicy"], job["nprocPerNode"]) == (2, "ExitCode", "1")
    assert [container["name"] for container in worker["template"]["spec"]["containers"]] == ["pytorch"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_large_stage_holds_what_a_platform_engineer_looks_for(stage):
    [item] = objects(K8S / f"{stage}.yaml")
    policy, [pod] = item["spec"]["runPolicy"], pods(item)
    [worker] = pod["containers"]
    names = {variable["name"] for variable in worker["env"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    assert {"app.kubernetes.io/name", "app.kubernetes.io/part-of"} <= item["metadata"]["labels"].keys()
    assert policy["activeDeadlineSeconds"] and policy["ttlSecondsAfterFinished"] and policy["cleanPodPolicy"]
    assert (
        worker["resources"]["requests"]["nvidia.com/gpu"] == worker["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory" and volumes["shm"]["emptyDir"]["sizeLimit"]
    assert {"TORCH_FR_DUMP_TEMP_FILE", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG"} <= names
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["priorityClassName"] and pod["affinity"]["podAffinity"] and pod["topologySpreadConstraints"]
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert volumes["dvc-cache"]["persistentVolumeClaim"]["readOnly"] is True


@pytest.mark.parametrize(("folder", "size"), [(K8S, "7b"), (TINY, "$(SIZE)")], ids=["7b", "tiny"])
@pytest.mark.parametrize("name", [*STAGES, "backbones"])
def test_a_job_runs_the_launcher_on_the_stage_of_its_name(folder, size, name):
    [item] = objects(folder / f"{name}.yaml")
    [pod] = pods(item)
    [container] = pod["containers"]

    options, passed_on = read_arguments(container["args"])

    assert container["command"] == ["python", "-m", "training.launching"]
    assert options.stage == name
    assert passed_on == ["--params", "/app/params.yaml", "--size", size]


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
    for name in STAGES:
        [pod] = pods(objects(K8S / f"{name}.yaml")[0])
        [worker] = pod["containers"]
        assert {"name": "workspace", "mountPath": worker["workingDir"]} in worker["volumeMounts"]


def test_the_service_loses_no_request_when_a_pod_goes():
    deployment = named("Deployment", "vargpt")["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert pod["terminationGracePeriodSeconds"] >= pause + Limits().deadline_seconds
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    assert named("PodDisruptionBudget", "vargpt")["spec"]["maxUnavailable"] == 1


def test_the_image_installs_locked_dependencies_before_it_copies_code():
    lines = DOCKERFILE.read_text().splitlines()
    installs = [number for number, line in enumerate(lines) if "uv pip" in line]
    copies = [number for number, line in enumerate(lines) if re.match(r"COPY (model|training|params)", line)]

    assert "ARG BASE=python:3.11-slim" in lines[: installs[0]]
    assert max(installs) < min(copies)
    for line in lines:
        assert not re.search(r"pip (install|sync)", line) or "--require-hashes" in line, line


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_the_image_can_be_built_for_either_build_of_torch(torch):
    locks = re.findall(r"^COPY (requirements/\S+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)

    assert len(set(locks)) == 4
    for lock in locks:
        assert (ROOT / lock.replace("${TORCH}", torch)).is_file(), lock


@pytest.mark.parametrize("target", ["training", "packaging", "serving"])
def test_another_commit_is_another_image_even_when_no_file_has_changed(target):
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    stage = re.search(rf"^FROM \S+ AS {target}\n(.+?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    names = [line.split()[0] for line in stage.splitlines() if line and not line.startswith(("#", " "))]
    after_the_code = names[len(names) - names[::-1].index("COPY") :]

    assert after_the_code[:6] == ["ARG", "ARG", "ARG", "RUN", "ENV", "LABEL"]


def test_images_share_the_layers_of_their_common_dependencies():
    found = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    of = {name: parent for parent, name in found}

    for target in ("training", "packaging", "serving"):
        chain = [target]
        while chain[-1] in of:
            chain.append(of[chain[-1]])
        assert "base" in chain


def test_the_build_context_holds_what_the_image_copies():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}

    for source, _ in copied_into_the_image():
        assert (ROOT / source).exists(), source
        assert source.startswith("k8s") or {source, source.split("/")[0]} & kept, source
    assert ".dvc" not in kept, "the cache of DVC would get into the build context"


def test_the_data_of_the_image_is_fetched_into_the_cache_and_linked_from_it(tmp_path):
    app, cache = tmp_path / "app", tmp_path / "dvc-cache"
    for source in (".dvc/config", ".dvc/raw", "data.dvc"):
        place = app / source
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    [pod] = pods(objects(TINY / "backbones.yaml")[0])
    before = sorted(app.rglob("*"))

    # Twice, as after a pod that was killed.
    for attempt in range(2):
        run_step(pod["initContainers"][0], tmp_path, tmp_path / f"fetch{attempt}")
    cache.chmod(0o555)
    run_step(pod["initContainers"][1], tmp_path, tmp_path / "link")

    [restored] = (tmp_path / "link" / "data").iterdir()
    assert restored.name == "digits.parquet" and restored.resolve().is_relative_to(cache)
    assert md5_on_disk(tmp_path / "link" / "data") == data_md5()
    assert sorted(app.rglob("*")) == before


def test_a_job_that_names_other_data_than_its_image_holds_ends_with_the_users_mistake(tmp_path):
    app = tmp_path / "app"
    shutil.copytree(ROOT / ".dvc" / "raw", app / ".dvc" / "raw")
    shutil.copy(ROOT / ".dvc" / "config", app / ".dvc" / "config")
    (app / "data.dvc").write_text((ROOT / "data.dvc").read_text().replace(data_md5(), "0" * 32 + ".dir"))
    [pod] = pods(objects(TINY / "backbones.yaml")[0])

    with pytest.raises(subprocess.CalledProcessError) as error:
        run_step(pod["initContainers"][1], tmp_path, tmp_path / "link")

    assert error.value.returncode == 2
    assert data_md5().encode() in error.value.output


def data_md5() -> str:
    """The hash of the data of the repository."""
    return yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"]


def run_step(container: dict[str, Any], root: Path, folder: Path) -> None:
    """Runs a shell step of a job in a folder of its own, with the folders of its pod below `root`."""
    folder.mkdir(exist_ok=True)
    command = [
        part.replace("/app/", f"{root}/app/").replace("/dvc-cache", f"{root}/dvc-cache")
        for part in (*container["command"], *container["args"])
    ]
    variables = {name: value.replace("/tmp", str(root)) for name, value in image_variables().items()}
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    here = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(root)}
    subprocess.run(command, cwd=folder, env={**variables, **given, **here}, check=True, capture_output=True)
