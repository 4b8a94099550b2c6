"""Names of the container images, from the one file that states them."""

from pathlib import Path

import yaml

from model.errors import UserError

IMAGES_FILE = Path("k8s", "images", "kustomization.yaml")


# Of objects that are rendered here; kustomize's own are in IMAGES_FILE.
MANAGED_BY = "vargpt"
DIGEST_DIGITS = 12


def shared_labels(image: str) -> dict[str, str]:
    """Recommended labels of a job that runs an image: its version, by tag or digest, and who renders it."""
    name, _, digest = image.partition("@sha256:")
    tag = name.rpartition("/")[2].partition(":")[2]
    version = f"sha256-{digest[:DIGEST_DIGITS]}" if digest else tag
    return {"app.kubernetes.io/version": version, "app.kubernetes.io/managed-by": MANAGED_BY}


def image_names(root: Path) -> dict[str, str]:
    """The full name of each image, by its name in manifests that kustomize completes.

    Args:
        root: The repository.

    Raises:
        UserError: the file is missing, or an image has neither tag nor digest.
    """
    path = root / IMAGES_FILE
    if not path.is_file():
        raise UserError(f"there is no {path}, which names the images")
    names = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["images"]:
        if digest := entry.get("digest"):
            suffix = f"@{digest}"
        elif tag := entry.get("newTag"):
            suffix = f":{tag}"
        else:
            raise UserError(f"{path}: {entry['name']} needs a newTag or a digest")
        names[entry["name"]] = entry["newName"] + suffix
    return names
