"""What a step has to do: how long samples are, how many are in a micro-batch, and what that is in units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.config import VargptConfig
from model.errors import UserError
from training.params import DatasetParams, StageParams
from training.planning.operations import Unit

# Positions of a drawn image besides its tokens: start and end.
AROUND_DRAWING = 2
JPEG_BYTES = 110_000
CODE_BYTES = 2


@dataclass(frozen=True)
class Sample:
    """A mean sample of a dataset or of a mixture.

    Args:
        words: Positions of text, prompt template and system prompt included.
        targets: Those that are supervised.
        pictures: Read.
        drawings: Drawn.
    """

    words: float
    targets: float
    pictures: float
    drawings: float

    def positions(self, config: VargptConfig) -> float:
        """Positions of the language model."""
        drawing = config.num_image_tokens + AROUND_DRAWING
        return self.words + self.pictures * config.num_vision_tokens + self.drawings * drawing


CONVERSATION = Sample(words=300, targets=150, pictures=1.0, drawings=0.0)
DRAWING = Sample(words=75, targets=20, pictures=0.0, drawings=1.0)
# Means by dataset. Of LLaVA's 665 K records 41 K have no picture (github.com/haotian-liu/LLaVA,
# docs/Data.md); lengths of text are assumed, to be replaced by what is known of the data (`vargpt plan
# --words --targets`).
SAMPLES = {
    "llava-1.5-mix": replace(CONVERSATION, pictures=0.94),
    "llava-onevision": CONVERSATION,
    "imagenet-instruct": DRAWING,
    "drawing": replace(DRAWING, words=30, targets=12),
    "understanding": Sample(words=60, targets=20, pictures=1.0, drawings=0.0),
    "text": Sample(words=40, targets=15, pictures=0.0, drawings=0.0),
}


def sample_of(mixture: Sequence[DatasetParams]) -> Sample:
    """The mean sample of a mixture; a dataset that is not in the list counts as conversations about a
    picture.
    """
    total = sum(dataset.weight for dataset in mixture)
    if not total:
        raise UserError("mixture: at least one dataset must have a weight above 0")
    known = [(dataset.weight / total, _sample_of_dataset(dataset.name)) for dataset in mixture]
    return Sample(
        *(
            sum(share * getattr(sample, name) for share, sample in known)
            for name in ("words", "targets", "pictures", "drawings")
        )
    )


def _sample_of_dataset(name: str) -> Sample:
    return next((sample for known, sample in SAMPLES.items() if name.startswith(known)), CONVERSATION)


@dataclass(frozen=True)
class Workload:
    """One step of one process.

    Args:
        samples: That it computes.
        together: Samples of a full micro-batch.
        positions: Of a sample.
    """

    sample: Sample
    samples: float
    together: float
    positions: float

    @property
    def passes(self) -> int:
        """Micro-batches of a step."""
        return max(math.ceil(self.samples / self.together - 1e-9), 1)

    @property
    def step(self) -> dict[Unit, float]:
        """Units of a step."""
        return self._units(self.samples, self.passes)

    @property
    def micro_batch(self) -> dict[Unit, float]:
        """Units of one micro-batch."""
        return self._units(min(self.together, self.samples), 1)

    def _units(self, samples: float, passes: int) -> dict[Unit, float]:
        return {
            Unit.POSITION: samples * self.positions,
            Unit.SQUARED_POSITION: samples * self.positions**2,
            Unit.TARGET: samples * self.sample.targets,
            Unit.INPUT_IMAGE: samples * self.sample.pictures,
            Unit.DRAWN_IMAGE: samples * self.sample.drawings,
            Unit.DRAWING_PASS: float(passes * (self.sample.drawings > 0)),
        }


def workload_of(config: VargptConfig, stage: StageParams, sample: Sample, processes: int) -> Workload:
    """A process's share of a step. UserError for a batch of fewer samples than processes."""
    if stage.batch < processes:
        raise UserError(f"batch {stage.batch} gives {processes} processes no sample each")
    positions = sample.positions(config)
    samples = stage.batch / processes
    together = stage.pack_tokens / positions if stage.pack_tokens else float(stage.micro_batch)
    return Workload(sample, samples, together, positions)


def bytes_of_sample(config: VargptConfig, sample: Sample, *, cached_codes: bool) -> float:
    """Bytes that are read for a sample: pictures as JPEG, and drawings as codes where they are cached."""
    drawing = CODE_BYTES * config.num_image_tokens if cached_codes else JPEG_BYTES
    return sample.pictures * JPEG_BYTES + sample.drawings * drawing
