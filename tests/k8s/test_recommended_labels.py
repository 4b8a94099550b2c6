"""Kubernetes' recommended labels, on every object that is applied."""

import shutil
import subprocess

import pytest
import yaml

from tests.k8s.manifests import K8S, MANIFESTS, objects

PARTS = ("name", "component", "part-of", "version", "managed-by")
RECOMMENDED = {f"app.kubernetes.io/{part}" for part in PARTS}
RENDERED = [path for path in MANIFESTS if "Rendered by" in path.read_text()]
APPLIED = [
    path.parent
    for path in sorted(K8S.rglob("kustomization.yaml"))
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
    # Parts of others, rendered files alone, and what follows its own tools.
    and path.parent.name not in ("mlflow", "sides", "trainjob", "monitoring")
]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which renders them")
@pytest.mark.parametrize("folder", APPLIED, ids=lambda path: str(path.relative_to(K8S)))
def test_every_applied_object_has_the_recommended_labels(folder):
    text = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True).stdout
    items = list(yaml.safe_load_all(text))

    assert items
    for item in items:
        labels = item["metadata"].get("labels", {}).keys()
        assert labels >= RECOMMENDED, (item["kind"], item["metadata"]["name"], RECOMMENDED - labels)


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: str(path.relative_to(K8S)))
def test_every_rendered_object_has_the_recommended_labels(path):
    for item in objects(path):
        assert item["metadata"]["labels"].keys() >= RECOMMENDED


def test_the_version_of_what_is_applied_is_that_of_our_images():
    component = yaml.safe_load((K8S / "images" / "kustomization.yaml").read_text())
    [labels] = [entry["pairs"] for entry in component["labels"]]
    tags = {entry["newTag"] for entry in component["images"] if entry["name"].startswith("vargpt-")}

    assert tags == {labels["app.kubernetes.io/version"]}
