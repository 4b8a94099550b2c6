"""The micro-batches of one training step and rank: samples chosen, encoded, and padded or packed.

What one step has depends on nothing but its number, so that any process can make any step at any time.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.batches import Encoded, packed
from model.config import ImageTokenizerConfig
from model.errors import UserError
from model.processing import VargptProcessor
from training.data.code_cache import CodeCache
from training.data.code_corruption import random_replacements
from training.data.mixture import Mixture
from training.data.packing import pack, share_of_rank
from training.data.sample_encoding import SampleEncoder
from training.data.sample_facts import is_single_drawing
from training.params import StageParams

Batch = dict[str, Tensor]
# Dataset, sample in it, and whether its prompt is dropped.
Chosen = tuple[int, int, bool]


class TooLong(NamedTuple):
    """A sample that was left out: its dataset, its number there, and its length in tokens."""

    dataset: int
    index: int
    tokens: int


class LoadedStep(NamedTuple):
    """Micro-batches, and the samples that were found to be too long on the way."""

    batches: list[Batch]
    too_long: list[TooLong]


class StepBatches:
    """Makes the micro-batches of any step; can be sent to another process.

    Arguments are those of `BatchLoader`.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: VargptProcessor,
        tokenizer_config: ImageTokenizerConfig,
        params: StageParams,
        seed: int,
        codes: CodeCache | None,
    ) -> None:
        self.mixture, self.processor, self.tokenizer_config = mixture, processor, tokenizer_config
        self.params, self.seed, self.codes = params, seed, codes
        self.encoder = SampleEncoder(processor, bool(params.text_weight), codes)
        self._null_tokens = len(processor.null_prompt()) + processor.num_image_tokens + 2
        self._too_long: dict[tuple[int, int], int] = {}

    def load(self, step: int, rank: int, world_size: int) -> LoadedStep:
        """One rank's share of one step. UserError when no sample of a dataset is short enough."""
        known = set(self._too_long)
        make = self._packed if self.params.pack_tokens else self._padded
        batches = make(step, rank, world_size)
        found = [TooLong(*key, tokens) for key, tokens in self._too_long.items() if key not in known]
        return LoadedStep(batches, found)

    def one_by_one(self, step: int) -> Iterator[tuple[str, Batch]]:
        """Every sample of a step as a batch of its own, with its record, as `dataset/index (id)`."""
        for number in self.numbers(step):
            chosen = self._choose(number)
            dataset = self.mixture.datasets[chosen[0]]
            sample = dataset.sample(chosen[1])
            some = [(self._encoded(chosen), number)]
            batch = self._with_replacements(self.processor.collate(self._samples(some)), some)
            yield f"{sample.source}/{dataset.original(chosen[1])} ({sample.id})", batch

    def numbers(self, step: int, rank: int = 0, world_size: int = 1) -> range:
        """Numbers of the samples of a step, in the order of the mixture."""
        return range(step * self.params.batch + rank, (step + 1) * self.params.batch, world_size)

    def _padded(self, step: int, rank: int, world_size: int) -> list[Batch]:
        """Micro-batches of `micro_batch` samples, sorted by length for less padding; as many on each rank."""
        numbered = [
            (self._encoded(self._choose(number)), number) for number in self.numbers(step, rank, world_size)
        ]
        numbered.sort(key=lambda pair: len(pair[0].input_ids))
        size = self.params.micro_batch
        most = -(-len(self.numbers(step, 0, world_size)) // size)
        return [
            self._with_replacements(self.processor.collate(self._samples(some)), some)
            for some in (numbered[first : first + size] for first in range(0, most * size, size))
        ]

    def _packed(self, step: int, rank: int, world_size: int) -> list[Batch]:
        """Rows of up to `pack_tokens` positions, one a micro-batch; as many on each rank.

        All ranks pack the whole step alike, by lengths that the index knows.
        """
        numbers = self.numbers(step)
        chosen = [self._choose(number) for number in numbers]
        rows = pack([self._length(one) for one in chosen], self.params.pack_tokens)
        batches = []
        for row in share_of_rank(rows, rank, world_size):
            some = [(self._encoded(chosen[position]), numbers[position]) for position in row]
            batches.append(self._with_replacements(packed(self._samples(some)), some))
        return batches

    def _samples(self, some: Sequence[tuple[Encoded, int]]) -> list[Encoded]:
        return [encoded for encoded, _ in some] or [self.processor.empty_sample()]

    def _with_replacements(self, batch: Batch, some: Sequence[tuple[Encoded, int]]) -> Batch:
        if self.codes is not None:
            return batch
        rows = [self._code_replacements(encoded.num_drawings, number) for encoded, number in some]
        return {**batch, "replacements": torch.cat(rows or [self._code_replacements(0, 0)])}

    def _code_replacements(self, num_images: int, number: int) -> Tensor:
        """Replacement codes for the images of one sample, the same on whichever rank it is, (images, L)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return random_replacements(num_images, self.tokenizer_config, self.params.code_corruption, generator)

    def _encoded(self, chosen: Chosen) -> Encoded:
        return self.encoder.encode(self.mixture.datasets, chosen)

    def _choose(self, number: int) -> Chosen:
        """The sample of this number, or the next one of its dataset that is not too long."""
        dataset_index, first = self.mixture.locate(number)
        dataset = self.mixture.datasets[dataset_index]
        for offset in range(len(dataset)):
            index = (first + offset) % len(dataset)
            if (dataset_index, index) not in self._too_long:
                chosen = dataset_index, index, self._drops_prompt(dataset_index, index, number)
                tokens = self._length(chosen)
                if tokens <= self.params.max_tokens:
                    return chosen
                self._too_long[dataset_index, index] = tokens
        raise UserError(f"no sample of {dataset[first].source} has at most {self.params.max_tokens} tokens")

    def _length(self, chosen: Chosen) -> int:
        """Positions of a sample as it is encoded."""
        facts = self.mixture.datasets[chosen[0]].facts(chosen[1])
        if facts is None:
            return len(self._encoded(chosen).input_ids)
        if chosen[2]:
            return self._null_tokens
        return facts.tokens if self.params.text_weight else facts.drawn_end or facts.tokens

    def _drops_prompt(self, dataset_index: int, index: int, number: int) -> bool:
        if not self.params.drop_prompt:
            return False
        dataset = self.mixture.datasets[dataset_index]
        facts = dataset.facts(index)
        is_single = is_single_drawing(dataset.sample(index)) if facts is None else facts.is_single_drawing
        rng = np.random.default_rng([self.seed, number])
        return is_single and rng.random() < self.params.drop_prompt
