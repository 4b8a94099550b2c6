"""Names of the container images, from the one file that states them."""

from pathlib import Path

import yaml

from model.errors import UserError

IMAGES_FILE = Path("k8s", "images", "kustomization.yaml")


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
