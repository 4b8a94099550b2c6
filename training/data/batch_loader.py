"""Micro-batches of tensors for any training step and rank, and the records that are in them."""

from collections.abc import Iterator

from torch import Tensor

from model.config import ImageTokenizerConfig
from model.errors import UserError
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.code_cache import CodeCache
from training.data.mixture import Mixture
from training.data.prefetch import Prefetcher
from training.data.sample_facts import text_sha256
from training.data.step_batches import LoadedStep, StepBatches, TooLong
from training.params import StageParams


class BatchLoader:
    """Loads micro-batches; they depend on seed, step, rank and world size alone.

    A sample of more than `params.max_tokens` positions is a bad record. The next sample of its dataset that
    is short enough takes its position in the order, the same on every process.

    Args:
        tokenizer_config: Of the image tokenizer whose codes are replaced.
        params: Of these, `drop_prompt` is the share of samples with a single drawing whose prompt is emptied,
            for guidance; `code_corruption` the largest share of replaced image codes; `pack_tokens` makes
            micro-batches of one packed row; `loader_workers` processes make steps ahead.
        bad_records: Log of samples that are too long.
        bad_record_share: Largest accepted share of bad records of a dataset.
        codes: Codes of the pictures to draw, where `params.cached_codes` asks for them.

    Raises:
        UserError: parameters that exclude each other, or data that was prepared for another text tokenizer.
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
        codes: CodeCache | None = None,
    ) -> None:
        _refuse_impossible(params, codes)
        _refuse_other_tokenizer(mixture, processor)
        self.mixture, self.params = mixture, params
        self.bad_records, self.bad_record_share = bad_records, bad_record_share
        self._batches = StepBatches(mixture, processor, tokenizer_config, params, seed, codes)
        self._ahead = Prefetcher(self._batches, params.loader_workers, params.steps)
        self._too_long: set[tuple[int, int]] = set()

    def micro_batches(self, step: int, rank: int = 0, world_size: int = 1) -> list[dict[str, Tensor]]:
        """One rank's share of one step, as collated micro-batches; as many on every rank.

        A rank that has fewer gets batches of one token without loss.
        """
        source = self._ahead if self.params.loader_workers else self._batches
        return self._noted(source.load(step, rank, world_size), self.mixture)

    def held_out(self, count: int, rank: int = 0, world_size: int = 1) -> list[dict[str, Tensor]]:
        """One rank's share of the first samples that are never trained on, the same ones in every run.

        None where no share of the data is held out.
        """
        mixture = self.mixture.held_out
        if mixture is None or not count:
            return []
        changes = {"batch": count, "drop_prompt": 0.0, "code_corruption": 0.0}
        mine = self._batches
        batches = StepBatches(
            mixture,
            mine.processor,
            mine.tokenizer_config,
            self.params.model_copy(update=changes),
            seed=0,
            codes=mine.codes,
        )
        # Another set of samples, whose long ones are left out like those of training, but not counted twice.
        return batches.load(0, rank, world_size).batches

    def one_by_one(self, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The records that all ranks together draw at one step, each with a batch of it alone."""
        return self._batches.one_by_one(step)

    def record_names(self, step: int) -> list[str]:
        """The records that all ranks together draw at one step, as `dataset/index (id)`."""
        names = []
        for number in self._batches.numbers(step):
            dataset, index = self.mixture.locate(number)
            sample = self.mixture.datasets[dataset].sample(index)
            names.append(f"{sample.source}/{self.mixture.datasets[dataset].original(index)} ({sample.id})")
        return names

    def _noted(self, loaded: LoadedStep, mixture: Mixture) -> list[dict[str, Tensor]]:
        for found in loaded.too_long:
            if (found.dataset, found.index) not in self._too_long:
                self._too_long.add((found.dataset, found.index))
                self._log(found, mixture)
        return loaded.batches

    def _log(self, found: TooLong, mixture: Mixture) -> None:
        dataset = mixture.datasets[found.dataset]
        sample = dataset.sample(found.index)
        reason = f"{sample.id} has {found.tokens} tokens, max_tokens is {self.params.max_tokens}"
        number = dataset.original(found.index)
        self.bad_records.reclassify_as_bad(sample.source, number, reason, self.bad_record_share)


def _refuse_impossible(params: StageParams, codes: CodeCache | None) -> None:
    if params.pack_tokens and params.pack_tokens < params.max_tokens:
        raise UserError(
            f"pack_tokens {params.pack_tokens} is less than max_tokens {params.max_tokens}: "
            "the longest samples would fit into no row"
        )
    if codes is not None and (params.code_corruption or params.softness):
        raise UserError("cached_codes goes neither with code_corruption nor with softness: they need pixels")


def _refuse_other_tokenizer(mixture: Mixture, processor: VargptProcessor) -> None:
    for dataset in mixture.datasets:
        known = dataset.text_sha256()
        if known is not None and known != text_sha256(processor):
            raise UserError(
                "the data was prepared for another text tokenizer than the model's; "
                "prepare it anew: vargpt data prepare"
            )
