"""What data is, by its content: the same however it is counted, named or laid out on the disk."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.data.samples import Sample


def samples_sha256(datasets: Iterable[Sequence[Sample]]) -> str:
    """The hash of all conversations and of the bytes of all their pictures, in their order."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for sample in dataset:
            facts = [sample.id, sample.source, sample.conversation(), sample.meta]
            digest.update(json.dumps(facts, sort_keys=True).encode())
            for image in sample.images:
                digest.update(hashlib.sha256(image.read()).digest())
        digest.update(b"|")
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """The hash of the content of files, in their order, and of nothing that is not there."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
