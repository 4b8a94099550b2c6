"""The prepared data of a stage by name, and its samples as tensors in an order fixed by the sample number."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import ImageTokenizerConfig
from model.errors import UserError
from model.processing import Encoded, VargptProcessor
from model.text_tokenizer import IMAGE_PAD
from training.data.bad_records import BadRecordLog
from training.data.code_corruption import random_replacements
from training.data.mixture import Mixture
from training.data.readers import open_dataset
from training.data.samples import Sample
from training.params import StageParams

KINDS = ("understanding", "drawing", "text")
# Encoded samples are kept up to here: small data sets are read from the disk once.
CACHE_BYTES = 1 << 30


def open_mixture(
    prepared: Path, weights: Mapping[str, float], seed: int, bad_records: BadRecordLog
) -> Mixture:
    """The training split of every kind of prepared data, drawn by weight; ValueError for an unknown name."""
    if unknown := sorted(weights.keys() - set(KINDS)):
        raise UserError(f"mixture names {unknown[0]!r}; known: {', '.join(KINDS)}")
    parts = []
    for name, weight in weights.items():
        path = prepared / name / "train.json"
        if not path.is_file():
            raise UserError(f"no prepared data at {path}; make it with: vargpt data prepare")
        parts.append((open_dataset(name, path, path.parent, bad_records), weight))
    return Mixture(parts, seed)


class Batches:
    """What each process learns from at each step: a pure function of seed, step and number of processes.

    Args:
        params: Of these, `drop_prompt` is the share of samples that only draw one picture whose prompt is
            emptied, for guidance; `replacements` says how many codes of drawn pictures are wrong.
        pictures: What pictures are drawn with.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: VargptProcessor,
        pictures: ImageTokenizerConfig,
        params: StageParams,
        seed: int,
    ) -> None:
        self.mixture, self.processor, self.pictures = mixture, processor, pictures
        self.params, self.seed = params, seed
        self.image_pad = processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        self._kept: dict[tuple[str, str, bool], Encoded] = {}
        self._kept_bytes = 0

    def at(self, step: int, rank: int = 0, world: int = 1) -> list[dict[str, Tensor]]:
        """The share of one process of one step, in micro-batches of similar length (less padding)."""
        numbers = range(step * self.params.batch + rank, (step + 1) * self.params.batch, world)
        encoded = [(self._encoded(number), number) for number in numbers]
        encoded.sort(key=lambda pair: len(pair[0].input_ids))
        size = self.params.micro_batch
        return [self._batch(encoded[first : first + size]) for first in range(0, len(encoded), size)]

    def _batch(self, part: Sequence[tuple[Encoded, int]]) -> dict[str, Tensor]:
        batch = self.processor.collate([encoded for encoded, _ in part])
        replacements = [
            self._replacements(len(encoded.generation_pixel_values), number) for encoded, number in part
        ]
        return {**batch, "replacements": torch.cat(replacements)}

    def _replacements(self, count: int, number: int) -> Tensor:
        """Those of one sample, the same whichever process learns from it."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return random_replacements(count, self.pictures, self.params.code_corruption, generator)

    def _encoded(self, number: int) -> Encoded:
        sample = self.mixture.sample_at(number)
        drawn = sample.messages[-1].content.count("<image_gen>") == len(sample.images) == 1
        dropped = drawn and np.random.default_rng([self.seed, number]).random() < self.params.drop_prompt
        key = (sample.source, sample.id, dropped)
        if key not in self._kept:
            encoded = self._encode(sample, dropped)
            size = sum(value.nbytes for value in vars(encoded).values() if isinstance(value, Tensor))
            if self._kept_bytes + size > CACHE_BYTES:
                return encoded
            self._kept[key] = encoded
            self._kept_bytes += size
        return self._kept[key]

    def _encode(self, sample: Sample, dropped: bool) -> Encoded:
        pictures = [reference.open() for reference in sample.images]
        if dropped:
            return self.processor.encode_unconditional(pictures[0])
        encoded = self.processor.encode(sample.conversation(), pictures)
        return encoded if self.params.text_weight else self._up_to_last_drawing(encoded)

    def _up_to_last_drawing(self, encoded: Encoded) -> Encoded:
        """Without the words that no drawing follows: they would be read for nothing."""
        places = (encoded.input_ids == self.image_pad).nonzero().flatten()
        if not len(places):
            return encoded
        end = int(places[-1]) + 1
        return replace(encoded, input_ids=encoded.input_ids[:end], labels=encoded.labels[:end])
