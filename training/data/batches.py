"""The prepared data of a stage by name, and its samples as tensors in an order fixed by the sample number."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import ImageTokenizerConfig
from model.errors import UserError
from model.processing import IMAGE_GEN, Encoded, VargptProcessor
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
    """The training split of every kind of prepared data, drawn by weight; UserError for an unknown name."""
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

    A sample of more than `params.max_tokens` positions is a bad record; the next one of its dataset that fits
    takes its place, the same on every process.

    Args:
        tokenizer: The configuration of the image tokenizer that drawn pictures become codes of.
        params: Of these, `drop_prompt` is the share of samples with a single drawing whose prompt is emptied,
            for guidance; `code_corruption` says how many codes of drawn pictures are replaced.
        bad_records: Where samples that are too long are counted.
        bad_record_share: TooManyBadRecords is raised when more of a dataset is bad.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: VargptProcessor,
        tokenizer: ImageTokenizerConfig,
        params: StageParams,
        seed: int,
        bad_records: BadRecordLog,
        bad_record_share: float,
    ) -> None:
        self.mixture, self.processor, self.tokenizer = mixture, processor, tokenizer
        self.params, self.seed = params, seed
        self.bad_records, self.bad_record_share = bad_records, bad_record_share
        self.image_pad = processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        # By dataset and record: the names that records give themselves need not be unique.
        self._cache: dict[tuple[int, int, bool], Encoded] = {}
        self._cache_bytes = 0
        self._too_long: set[tuple[int, int]] = set()

    def at(self, step: int, rank: int = 0, world: int = 1) -> list[dict[str, Tensor]]:
        """The share of one process of one step, in micro-batches of similar length (less padding)."""
        encoded = [(self._encoded(number), number) for number in self._numbers(step, rank, world)]
        encoded.sort(key=lambda pair: len(pair[0].input_ids))
        size = self.params.micro_batch
        return [self._batch(encoded[first : first + size]) for first in range(0, len(encoded), size)]

    def names_at(self, step: int) -> list[str]:
        """The records that all processes together learn from at one step, as `dataset/index (id)`."""
        names = []
        for number in self._numbers(step, rank=0, world=1):
            part, index = self.mixture.location_at(number)
            sample = self.mixture.datasets[part][index]
            names.append(f"{sample.source}/{index} ({sample.id})")
        return names

    def _numbers(self, step: int, rank: int, world: int) -> range:
        return range(step * self.params.batch + rank, (step + 1) * self.params.batch, world)

    def _batch(self, part: Sequence[tuple[Encoded, int]]) -> dict[str, Tensor]:
        batch = self.processor.collate([encoded for encoded, _ in part])
        replacements = [
            self._replacements(len(encoded.generation_pixel_values), number) for encoded, number in part
        ]
        return {**batch, "replacements": torch.cat(replacements)}

    def _replacements(self, count: int, number: int) -> Tensor:
        """Codes in place of the right ones for one sample, the same whichever process learns from it."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return random_replacements(count, self.tokenizer, self.params.code_corruption, generator)

    def _encoded(self, number: int) -> Encoded:
        """The sample of this number, or the next one of its dataset that is not too long."""
        part, first = self.mixture.location_at(number)
        dataset = self.mixture.datasets[part]
        for offset in range(len(dataset)):
            index = (first + offset) % len(dataset)
            if (part, index) not in self._too_long:
                encoded = self._encoded_record(part, index, dataset[index], number)
                if len(encoded.input_ids) <= self.params.max_tokens:
                    return encoded
                self._leave_out(part, index, dataset[index], len(encoded.input_ids))
        raise UserError(f"no sample of {dataset[first].source} has at most {self.params.max_tokens} tokens")

    def _leave_out(self, part: int, index: int, sample: Sample, length: int) -> None:
        self._too_long.add((part, index))
        reason = f"{sample.id} has {length} tokens, max_tokens is {self.params.max_tokens}"
        self.bad_records.add_late(sample.source, index, reason, self.bad_record_share)

    def _encoded_record(self, part: int, index: int, sample: Sample, number: int) -> Encoded:
        dropped = self._is_dropped(sample, number)
        key = (part, index, dropped)
        if key not in self._cache:
            encoded = self._encode(sample, dropped)
            size = sum(value.nbytes for value in vars(encoded).values() if isinstance(value, Tensor))
            if self._cache_bytes + size > CACHE_BYTES:
                return encoded
            self._cache[key] = encoded
            self._cache_bytes += size
        return self._cache[key]

    def _is_dropped(self, sample: Sample, number: int) -> bool:
        """Whether the prompt of this sample is emptied this time."""
        is_single_drawing = sample.messages[-1].content.count(IMAGE_GEN) == len(sample.images) == 1
        chance = np.random.default_rng([self.seed, number])
        return is_single_drawing and chance.random() < self.params.drop_prompt

    def _encode(self, sample: Sample, dropped: bool) -> Encoded:
        pictures = [reference.open() for reference in sample.images]
        if dropped:
            return self.processor.encode_unconditional(pictures[0])
        encoded = self.processor.encode(sample.conversation(), pictures)
        return encoded if self.params.text_weight else self._up_to_last_drawing(encoded)

    def _up_to_last_drawing(self, encoded: Encoded) -> Encoded:
        """Without the words after the last drawing, which would be read for nothing."""
        places = (encoded.input_ids == self.image_pad).nonzero().flatten()
        if not len(places):
            return encoded
        end = int(places[-1]) + 1
        return replace(encoded, input_ids=encoded.input_ids[:end], labels=encoded.labels[:end])
