"""The final model as DVC data, so that `dvc push` and `dvc pull` carry it between machines.

It lies in artifacts/model as hard links to the weights that the last stage published: no byte is stored
twice. artifacts/model.dvc names it by hash; commit that file to share the model.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from model.errors import UserError
from model.manifest import link_or_copy, manifest_sha256

TRAINED = Path("outputs/stage3/model")
SHARED = Path("artifacts/model")
RECORD = Path("artifacts/shared.json")


def final_model() -> Path:
    """The folder of the last stage's model: trained here, or else pulled by DVC."""
    return SHARED if SHARED.is_dir() and not TRAINED.is_dir() else TRAINED


def share(model_dir: Path = TRAINED) -> str:
    """Let DVC track the final model; returns the hash of its weights. UserError when there is none."""
    if not model_dir.is_dir():
        raise UserError(f"there is no {model_dir} to share; train it with: dvc repro")
    weights = manifest_sha256(model_dir)
    shutil.rmtree(SHARED, ignore_errors=True)
    shutil.copytree(model_dir, SHARED, copy_function=link_or_copy)
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(SHARED)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"DVC does not take {SHARED}: {done.stderr.strip()}")
    RECORD.write_text(json.dumps({"weights_sha256": weights}) + "\n", encoding="utf-8")
    return weights


def share_by_name(pointer: Path) -> str:
    """Record only the hash of a final model that lies elsewhere, as the pointer of its stage names it."""
    weights = json.loads(pointer.read_text(encoding="utf-8"))["weights_sha256"]
    RECORD.write_text(json.dumps({"weights_sha256": weights}) + "\n", encoding="utf-8")
    return weights
