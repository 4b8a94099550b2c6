"""SHA-256 of datasets and of files by their content, whatever their paths and modification times."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.data.datasets import as_dataset
from training.data.samples import Sample


def samples_sha256(datasets: Iterable[Sequence[Sample]]) -> str:
    """One hash of all conversations and of the bytes of all their images, in order."""
    digest = hashlib.sha256()
    for dataset in datasets:
        digest.update(as_dataset(dataset).sha256().encode())
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """One hash of the content of files, in order; paths without a file are left out."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
