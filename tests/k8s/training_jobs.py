"""Training jobs of tests on a cluster: a stage under another name, its checkpoints, its weights."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.k8s.cluster import TINY, Cluster
from training.tracking.mlflow_run import RUN_TAG

LOST = ("restarts", "repeated_steps", "repeated_seconds", "down_seconds")


def manifest(stage: str, name: str, *arguments: str) -> dict[str, Any]:
    """A stage's job as it lies in k8s/overlays/tiny, under another name and with further arguments."""
    job = yaml.safe_load((TINY / f"{stage}.yaml").read_text())
    job["metadata"]["name"] = name
    pod_of(job)["containers"][0]["args"] += arguments
    return job


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """The pod that a job's workers are made of."""
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def mount_claim(pod: dict[str, Any], claim: str, path: str) -> None:
    """Gives the container of a pod one more volume."""
    pod["volumes"].append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
    pod["containers"][0]["volumeMounts"].append({"name": claim, "mountPath": path})


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
    copy_backbones(cluster, name)
    cluster.apply(manifest("stage1", name, "--outputs", name))
    wait_for_checkpoint(cluster, name, after=0)


def copy_backbones(cluster: Cluster, outputs: str) -> None:
    """Makes a folder of outputs on the volume, with what stage 1 starts from."""
    cluster.on_volume("mkdir", outputs)
    cluster.on_volume("cp", "--recursive", "outputs/backbones", f"{outputs}/")


def assert_ends_like_stage1(cluster: Cluster, name: str, folder: Path) -> dict[str, float]:
    """The job ends well, and nothing that was learned or told differs from the one that nothing disturbed.

    Its weights are the same, and one MLflow run has its losses from the first step to the last, over all
    restarts.

    Returns:
        What that run says of lost work: restarts, repeated_steps, repeated_seconds, down_seconds.
    """
    assert cluster.ended(name) == "Succeeded", cluster.logs(name)
    cluster.fetch(folder, "outputs/stage1/model", f"{name}/stage1/model")
    assert_same_weights(folder / name / "stage1" / "model", folder / "outputs" / "stage1" / "model")
    # What could not be told in time lies in the spool.
    cluster.on_volume("python", "-m", "training.commands", "sync")
    run = tracked_run(cluster, name)
    assert run["info"]["status"] == "FINISHED"
    assert losses(cluster, run) == losses(cluster, tracked_run(cluster, "outputs"))
    return lost_work(run)


def tracked_run(cluster: Cluster, outputs: str) -> dict[str, Any]:
    """The one run in the tracking server that the model of stage 1 in a folder comes from."""
    name = json.loads(cluster.on_volume("cat", f"{outputs}/stage1/model/lineage.json"))["run_id"]
    experiments = cluster.ask_mlflow("experiments/search?max_results=100")["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]
    # Where MLflow was out of reach, the record has our own name of the run.
    conditions = f"attributes.run_id = '{name}'", f"tags.`{RUN_TAG}` = '{name}'"
    asked = [cluster.ask_mlflow("runs/search", experiment_ids=ids, filter=one) for one in conditions]
    [run] = [run for found in asked for run in found.get("runs", ())]
    return run


def losses(cluster: Cluster, run: dict[str, Any]) -> list[tuple[int, float]]:
    """The losses of a run, by step."""
    query = f"run_id={run['info']['run_id']}&metric_key=loss%2Fimage"
    history = cluster.ask_mlflow(f"metrics/get-history?{query}")["metrics"]
    assert history
    return sorted({(int(metric["step"]), metric["value"]) for metric in history})


def lost_work(run: dict[str, Any]) -> dict[str, float]:
    """What restarts have cost a run, as its metrics say."""
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    lost = {name: metrics[f"lost/{name}"] for name in LOST}
    # Time passes between two attempts, and only there.
    assert (lost["restarts"] > 0) == (lost["down_seconds"] > 0), lost
    return lost


def seconds_to_next_step(cluster: Cluster, outputs: str, after: int, since: float) -> float:
    """Waits until another attempt of stage 1 has done a step beyond this one.

    Args:
        since: Seconds since 1970.
    """
    until = time.monotonic() + 300
    while time.monotonic() < until:
        # Written down once a second, and deleted once the stage is done.
        cat = ("exec", "desk", "--", "sh", "-c", f"cat {outputs}/stage1/*.run.json")
        if found := cluster.run(*cat, is_checked=False):
            record = json.loads(found)
            if record["restarts"] and record["step"] > after:
                return record["time"] - since
        elif outputs in finished(cluster):
            return time.time() - since
        time.sleep(0.2)
    raise AssertionError(f"no step after step {after}\n{cluster.logs(outputs)}")


def finished(cluster: Cluster) -> list[str]:
    """Folders in which stage 1 has ended."""
    return cluster.on_volume("sh", "-c", "ls -d */stage1/model").decode().replace("/stage1/model", "").split()
