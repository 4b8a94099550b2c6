"""Training splits of the prepared data, by kind, and the mixture of them that a stage learns from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.errors import UserError
from training.data.bad_records import BadRecordLog
from training.data.mixture import Mixture
from training.data.readers import open_dataset
from training.data.samples import Sample

KINDS = ("understanding", "drawing", "text")


def open_train_split(
    prepared: Path, kind: str, bad_records: BadRecordLog, verify_images: bool = True
) -> Sequence[Sample]:
    """The training conversations of one kind of prepared data. UserError when they have not been prepared."""
    path = prepared / kind / "train.json"
    if not path.is_file():
        raise UserError(f"no prepared data at {path}; make it with: vargpt data prepare")
    return open_dataset(kind, path, path.parent, bad_records, verify_images)


def open_mixture(
    prepared: Path, weights: Mapping[str, float], seed: int, bad_records: BadRecordLog
) -> Mixture:
    """The mixture of training splits with these weights, {kind: weight}. UserError for an unknown kind."""
    if unknown := sorted(weights.keys() - set(KINDS)):
        raise UserError(f"mixture names {unknown[0]!r}; known: {', '.join(KINDS)}")
    parts = [(open_train_split(prepared, kind, bad_records), weight) for kind, weight in weights.items()]
    return Mixture(parts, seed)
