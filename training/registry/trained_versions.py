"""What stages have published, as versions of a registered model that is the trainers' own: `vargpt-trained`.

An account that may train need not be allowed to write the model whose champion is served. A version here
holds the small files and the address of the weights, which stay in the folder of their stage: until that
stage is trained anew, `models:/vargpt-trained/N` is a model like any other. Promotion makes a version of the
served model from it, with weights of its own.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from model.manifest import LINEAGE, manifest_sha256
from model.weights_address import small_files, write_address
from training.registry.lineage import TAG_PREFIX, WEIGHTS_TAG, read_lineage
from training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINED_MODEL = "vargpt-trained"
# Of a version of the served model: which version of the trainers' model it was made from.
TRAINED_TAG = f"{TAG_PREFIX}trained_version"


def track_trained(tracker: Tracker, model_dir: Path) -> None:
    """Name a stage's published weights in its run, and make them a version of the trainers' model, as soon as
    MLflow is in reach.
    """
    weights = manifest_sha256(model_dir)
    tracker.tag(**{WEIGHTS_TAG: weights})
    folder = f"trained-{weights[:12]}"
    for name in (*small_files(model_dir), LINEAGE):
        tracker.artifact(model_dir / name, (Path(folder) / name).parent.as_posix())
    with TemporaryDirectory() as scratch:
        tracker.artifact(write_address(model_dir.resolve(), Path(scratch)), folder)
    tracker.model_version(TRAINED_MODEL, folder, read_lineage(model_dir).tags())


def trained_version(client: "MlflowClient", run_id: str, weights: str) -> str | None:
    """The newest version of the trainers' model that has these weights of this run; None for none."""
    found = client.search_model_versions(f"name = '{TRAINED_MODEL}' AND run_id = '{run_id}'")
    same = [int(version.version) for version in found if version.tags.get(WEIGHTS_TAG) == weights]
    return f"{TRAINED_MODEL}/{max(same)}" if same else None
