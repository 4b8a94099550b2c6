"""The jobs of the pipeline as they lie in k8s/, and their steps that handle data, run on this machine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import DOCKERFILE, K8S, ROOT, STAGES, TINY, containers, named, objects, pods
from training.launching.launcher import read_arguments
from training.registry.data_pointer import md5_on_disk


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
    [container] = [found for found in containers(pod) if found["name"] in ("pytorch", "backbones")]

    options, passed_on = read_arguments(container["args"])

    assert container["command"] == ["python", "-m", "training.launching"]
    assert options.stage == name
    assert passed_on == ["--params", "/app/params.yaml", "--size", size]


def test_workers_share_one_volume_and_keep_their_working_folder_on_it():
    claim = named("PersistentVolumeClaim", "workspace")

    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in STAGES:
        [pod] = pods(objects(K8S / f"{name}.yaml")[0])
        [worker] = pod["containers"]
        assert {"name": "workspace", "mountPath": worker["workingDir"]} in worker["volumeMounts"]


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


def image_variables() -> dict[str, str]:
    """The environment that the image sets."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.+)$", text, re.MULTILINE) for pair in line.split()
    )


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
