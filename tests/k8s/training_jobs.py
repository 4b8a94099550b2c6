"""Training jobs of tests on a cluster: a stage under another name, its checkpoints, its weights."""

import copy
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.k8s.cluster import TINY, Cluster


def manifest(stage: str, name: str, *arguments: str) -> dict[str, Any]:
    """A stage's job as it lies in k8s/overlays/tiny, under another name and with further arguments."""
    job = yaml.safe_load((TINY / f"{stage}.yaml").read_text())
    job["metadata"]["name"] = name
    pod_of(job)["containers"][0]["args"] += arguments
    return job


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pod that a job's workers are made of."""
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def desk() -> dict[str, Any]:
    """A pod like a worker that does nothing: a place to look at the volume from."""
    pod = copy.deepcopy(pod_of(manifest("stage1", "desk")))
    pod["containers"][0] |= {"command": ["sleep", "infinity"], "args": []}
    pod |= {"terminationGracePeriodSeconds": 0, "topologySpreadConstraints": []}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "desk",
            "namespace": "vargpt",
            # What network policies let it reach.
            "labels": {"app.kubernetes.io/component": "training"},
        },
        "spec": pod,
    }


def assert_same_weights(one: Path, other: Path) -> None:
    """Every tensor of two published models is the same, bit for bit; if not, says how far they are apart."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names and names == sorted(path.name for path in other.glob("*.safetensors"))
    for name in names:
        here, there = load_file(one / name), load_file(other / name)
        assert here.keys() == there.keys()
        far = {
            key: (here[key] - there[key]).abs().max().item()
            for key in here
            if not here[key].equal(there[key])
        }
        assert not far, f"{len(far)} of {len(here)} tensors of {name} differ, by up to {max(far.values())}"


def newest_checkpoint(cluster: Cluster, outputs: str) -> int:
    """The newest step of stage 1 that is committed on the volume, or 0."""
    found = cluster.on_volume("find", f"{outputs}", "-path", "*/stage1/*/COMPLETE").decode().split()
    return max((int(Path(path).parent.name.removeprefix("step_")) for path in found), default=0)


def wait_for_checkpoint(cluster: Cluster, outputs: str, after: int, seconds: float = 120) -> None:
    """Waits until a step after this one is committed."""
    until = time.monotonic() + seconds
    while newest_checkpoint(cluster, outputs) <= after:
        assert time.monotonic() < until, f"no checkpoint after step {after}"
        time.sleep(0.2)


def start_again(cluster: Cluster, name: str) -> None:
    """Starts stage 1 once more, with outputs of its own, and waits for its first checkpoint."""
    cluster.on_volume("mkdir", name)
    cluster.on_volume("cp", "--recursive", "outputs/backbones", f"{name}/")
    cluster.apply(manifest("stage1", name, "--outputs", name))
    wait_for_checkpoint(cluster, name, after=0)


def assert_ends_like_stage1(cluster: Cluster, name: str, folder: Path) -> None:
    """The job ends well, with the weights of the one that nothing disturbed."""
    assert cluster.ended(name) == "Succeeded", cluster.logs(name)
    cluster.fetch(folder, "outputs/stage1/model", f"{name}/stage1/model")
    assert_same_weights(folder / name / "stage1" / "model", folder / "outputs" / "stage1" / "model")
