"""The objects of k8s/ as they lie in its files, and the pods that they make."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
TINY = K8S / "overlays" / "tiny"
DOCKERFILE = K8S / "images" / "Dockerfile"
STAGES = ("stage1", "stage2", "stage3")
# A patch is no object; images are the matter of a test of their own.
MANIFESTS = sorted(
    path for path in K8S.rglob("*.yaml") if path.name not in ("kustomization.yaml", "gpu.yaml")
)
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
