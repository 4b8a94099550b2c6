"""Micro-batches of tensors for any training step and rank: samples drawn, tokenized and collated."""

import time
from collections.abc import Sequence
from dataclasses import replace

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
from training.data.samples import Sample
from training.params import StageParams

# Encoded samples are cached up to this size: a small dataset is read from the disk once.
CACHE_BYTES = 1 << 30


class BatchLoader:
    """Loads micro-batches; they depend on seed, step, rank and world size alone.

    A sample of more than `params.max_tokens` positions is a bad record. The next sample of its dataset that
    is short enough takes its position in the order, the same on every process.

    Args:
        tokenizer_config: Of the image tokenizer whose codes are replaced.
        params: Of these, `drop_prompt` is the share of samples with a single drawing whose prompt is emptied,
            for guidance; `code_corruption` the largest share of replaced image codes.
        bad_records: Log of samples that are too long.
        bad_record_share: Largest accepted share of bad records of a dataset.

    Raises:
        TooManyBadRecords: while loading, when more records of a dataset turn out to be bad.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: VargptProcessor,
        tokenizer_config: ImageTokenizerConfig,
        params: StageParams,
        seed: int,
        bad_records: BadRecordLog,
        bad_record_share: float,
    ) -> None:
        self.mixture, self.processor, self.tokenizer_config = mixture, processor, tokenizer_config
        self.params, self.seed = params, seed
        self.bad_records, self.bad_record_share = bad_records, bad_record_share
        self.image_pad_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        # Keys are dataset, sample and whether the prompt is dropped: the ids of records need not be unique.
        self._cache: dict[tuple[int, int, bool], Encoded] = {}
        self._cache_bytes = 0
        self._too_long: set[tuple[int, int]] = set()
        # What the last step's micro-batches took.
        self.seconds = 0.0

    def micro_batches(self, step: int, rank: int = 0, world_size: int = 1) -> list[dict[str, Tensor]]:
        """One rank's share of one step, as collated micro-batches, sorted by length for less padding."""
        began = time.monotonic()
        numbered = [
            (self._encoded(number), number) for number in self._sample_numbers(step, rank, world_size)
        ]
        numbered.sort(key=lambda pair: len(pair[0].input_ids))
        size = self.params.micro_batch
        batches = [self._collate(numbered[first : first + size]) for first in range(0, len(numbered), size)]
        self.seconds = time.monotonic() - began
        return batches

    def record_names(self, step: int) -> list[str]:
        """The records that all ranks together draw at one step, as `dataset/index (id)`."""
        names = []
        for number in self._sample_numbers(step, rank=0, world_size=1):
            dataset, index = self.mixture.locate(number)
            sample = self.mixture.datasets[dataset][index]
            names.append(f"{sample.source}/{index} ({sample.id})")
        return names

    def _sample_numbers(self, step: int, rank: int, world_size: int) -> range:
        return range(step * self.params.batch + rank, (step + 1) * self.params.batch, world_size)

    def _collate(self, numbered: Sequence[tuple[Encoded, int]]) -> dict[str, Tensor]:
        batch = self.processor.collate([encoded for encoded, _ in numbered])
        replacements = [
            self._code_replacements(len(encoded.generation_pixel_values), number)
            for encoded, number in numbered
        ]
        return {**batch, "replacements": torch.cat(replacements)}

    def _code_replacements(self, num_images: int, number: int) -> Tensor:
        """Replacement codes for the images of one sample, the same on whichever rank it is, (images, L)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return random_replacements(num_images, self.tokenizer_config, self.params.code_corruption, generator)

    def _encoded(self, number: int) -> Encoded:
        """The sample of this number, or the next one of its dataset that is not too long."""
        dataset_index, first = self.mixture.locate(number)
        dataset = self.mixture.datasets[dataset_index]
        for offset in range(len(dataset)):
            index = (first + offset) % len(dataset)
            if (dataset_index, index) not in self._too_long:
                encoded = self._cached(dataset_index, index, self._drops_prompt(dataset[index], number))
                if len(encoded.input_ids) <= self.params.max_tokens:
                    return encoded
                self._log_too_long(dataset_index, index, len(encoded.input_ids))
        raise UserError(f"no sample of {dataset[first].source} has at most {self.params.max_tokens} tokens")

    def _log_too_long(self, dataset_index: int, index: int, length: int) -> None:
        self._too_long.add((dataset_index, index))
        sample = self.mixture.datasets[dataset_index][index]
        reason = f"{sample.id} has {length} tokens, max_tokens is {self.params.max_tokens}"
        self.bad_records.reclassify_as_bad(sample.source, index, reason, self.bad_record_share)

    def _drops_prompt(self, sample: Sample, number: int) -> bool:
        is_single_drawing = sample.messages[-1].content.count(IMAGE_GEN) == len(sample.images) == 1
        rng = np.random.default_rng([self.seed, number])
        return is_single_drawing and rng.random() < self.params.drop_prompt

    def _cached(self, dataset_index: int, index: int, drops_prompt: bool) -> Encoded:
        key = (dataset_index, index, drops_prompt)
        if key not in self._cache:
            encoded = self._encode(self.mixture.datasets[dataset_index][index], drops_prompt)
            size = sum(value.nbytes for value in vars(encoded).values() if isinstance(value, Tensor))
            if self._cache_bytes + size > CACHE_BYTES:
                return encoded
            self._cache[key] = encoded
            self._cache_bytes += size
        return self._cache[key]

    def _encode(self, sample: Sample, drops_prompt: bool) -> Encoded:
        images = [reference.open() for reference in sample.images]
        if drops_prompt:
            return self.processor.encode_unconditional(images[0])
        encoded = self.processor.encode(sample.conversation(), images)
        return encoded if self.params.text_weight else self._cut_after_last_drawing(encoded)

    def _cut_after_last_drawing(self, encoded: Encoded) -> Encoded:
        """Without the text after the last drawing, which no loss depends on where text has no weight."""
        positions = (encoded.input_ids == self.image_pad_id).nonzero().flatten()
        if not len(positions):
            return encoded
        end = int(positions[-1]) + 1
        return replace(encoded, input_ids=encoded.input_ids[:end], labels=encoded.labels[:end])
