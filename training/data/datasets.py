"""Datasets as a mixture draws from them: samples by number, and what is known of each without reading it."""

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from training.data.permutations import permutation
from training.data.samples import Sample

# Half a SHA-256 tells pictures apart as well.
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What batches are planned by.

    Args:
        tokens: Positions of the whole conversation.
        drawn_end: Positions up to the end of the last drawing; 0 without one.
        is_single_drawing: The last answer draws the only image.
    """

    tokens: int
    drawn_end: int
    is_single_drawing: bool


def picture_digest(content: bytes) -> bytes:
    """By which an encoded picture is known, wherever it lies."""
    return hashlib.sha256(content).digest()[:DIGEST_BYTES]


class Dataset(Sequence[Sample]):
    """Samples by number. Numbers need not be those of the files: `original` gives these."""

    @abstractmethod
    def sha256(self) -> str:
        """A hash of all conversations and of the bytes of all pictures, in order."""

    def facts(self, index: int) -> SampleFacts | None:
        """Lengths of a sample, where they are known without reading it."""

    def text_sha256(self) -> str | None:
        """A hash of the processor by which lengths are known; None if none are."""

    def picture_digests(self, index: int) -> list[bytes]:
        """`picture_digest` of the images of a sample, in their order."""
        return [picture_digest(image.content()) for image in self[index].images]

    def original(self, index: int) -> int:
        """The number of a sample among all good records of its dataset."""
        return index

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self.sample(number) for number in range(*index.indices(len(self)))]
        return self.sample(index)

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """The sample of this number."""


class LoadedDataset(Dataset):
    """Samples that are in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The sample of this number."""
        return self._samples[index]

    def sha256(self) -> str:
        """Reads all pictures."""
        digest = hashlib.sha256()
        for sample in self._samples:
            facts = [sample.id, sample.source, sample.conversation(), sample.meta]
            digest.update(json.dumps(facts, sort_keys=True).encode())
            for image in sample.images:
                digest.update(hashlib.sha256(image.read()).digest())
        return digest.hexdigest()


class Subset(Dataset):
    """Some samples of another dataset, by their numbers there."""

    def __init__(self, dataset: Dataset, numbers: np.ndarray, name: str) -> None:
        self._dataset, self._numbers, self._name = dataset, numbers, name

    def __len__(self) -> int:
        return len(self._numbers)

    def sample(self, index: int) -> Sample:
        """The sample of this number."""
        return self._dataset.sample(int(self._numbers[index]))

    def sha256(self) -> str:
        """That of the dataset, with the name of this part of it."""
        return hashlib.sha256(f"{self._dataset.sha256()}/{self._name}".encode()).hexdigest()

    def facts(self, index: int) -> SampleFacts | None:
        """Those of the dataset."""
        return self._dataset.facts(int(self._numbers[index]))

    def text_sha256(self) -> str | None:
        """That of the dataset."""
        return self._dataset.text_sha256()

    def picture_digests(self, index: int) -> list[bytes]:
        """Those of the dataset."""
        return self._dataset.picture_digests(int(self._numbers[index]))

    def original(self, index: int) -> int:
        """The number in the dataset."""
        return self._dataset.original(int(self._numbers[index]))


def as_dataset(samples: Sequence[Sample]) -> Dataset:
    """A Dataset of samples in memory, or the one that is given."""
    return samples if isinstance(samples, Dataset) else LoadedDataset(samples)


def split_held_out(dataset: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    """A dataset without its held-out samples, and these; the same ones whatever the seed of training."""
    count = math.ceil(share * len(dataset))
    if not count:
        return dataset, None
    order = permutation("held-out", len(dataset))
    # What is trained on stays in the order of the files.
    training = Subset(dataset, np.sort(order[count:]), f"without {count} held out")
    return training, Subset(dataset, order[:count], f"{count} held out")
