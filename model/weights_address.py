"""Weights that a registry knows by their address: they lie on a volume, the registry holds the small files.

For weights that every reader mounts anyway, where uploading and downloading them would move them twice more.
"""

import json
import shutil
from pathlib import Path

from model.errors import UserError
from model.manifest import (
    LINEAGE,
    MANIFEST,
    WEIGHTS_SUFFIX,
    link_published,
    manifest_sha256,
    read_manifest,
    refuse_altered,
    verify,
)

ADDRESS = "weights_address.json"


def put_on_volume(published: Path, volume: Path, small: Path) -> None:
    """Put a published model into a volume, once, and its small files with the address into a folder.

    Args:
        volume: Where models lie by the SHA-256 of their manifest; links where it can hold them, else copies,
            which are verified.
        small: A new folder: what a registry keeps.
    """
    kept = volume / manifest_sha256(published)
    if not (kept / MANIFEST).is_file():
        link_published(published, kept)
    verify(kept)
    small.mkdir(parents=True)
    for name in small_files(published):
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(published / name, small / name)
    write_address(kept, small)


def small_files(published: Path) -> list[str]:
    """What a published model consists of but for its weights; the manifest comes last."""
    return [*(name for name in read_manifest(published) if not name.endswith(WEIGHTS_SUFFIX)), MANIFEST]


def write_address(weights: Path, small: Path) -> Path:
    """Say, beside the small files of a model, in which folder its weights lie; the file that says so."""
    path = small / ADDRESS
    path.write_text(json.dumps({"folder": str(weights)}) + "\n", encoding="utf-8")
    return path


def missing_weights(folder: Path) -> Path | None:
    """Where the weights of what a registry held lie, if this machine does not mount that; else None."""
    if not (folder / ADDRESS).is_file():
        return None
    kept = _weights_folder(folder)
    return None if (kept / MANIFEST).is_file() else kept


def verify_small_files(folder: Path) -> None:
    """Raise a UserError that names the first small file which is missing or altered; weights are not read."""
    entries = read_manifest(folder)
    files = {name: folder / name for name in small_files(folder) if name != MANIFEST}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing, though the manifest names it")
    refuse_altered(files, entries)


def _weights_folder(small: Path) -> Path:
    return Path(json.loads((small / ADDRESS).read_text(encoding="utf-8"))["folder"])


def with_weights(folder: Path, scratch: Path) -> Path:
    """What a registry held of a model, with its weights: the folder itself, or one in `scratch` with links to
    them.

    UserError when weights are known by an address at which they do not lie.
    """
    if not (folder / ADDRESS).is_file():
        return folder
    if (missing := missing_weights(folder)) is not None:
        raise UserError(f"the weights lie in {missing}, and there is no such folder here: mount that volume")
    kept = _weights_folder(folder)
    if (found := manifest_sha256(kept)) != (expected := manifest_sha256(folder)):
        raise UserError(f"{kept} holds weights {found}, the registry says {expected}")
    whole = scratch / "with_weights"
    whole.mkdir(parents=True)
    for name in (*read_manifest(folder), MANIFEST, LINEAGE):
        source = kept / name if name.endswith(WEIGHTS_SUFFIX) else folder / name
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            (whole / name).symlink_to(source.resolve())
    return whole
