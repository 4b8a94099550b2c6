"""Evaluates a model on samples that no stage has trained on: losses of text and pictures, and drawings.

For data that comes without questions whose answers are known; of digits, `evaluate` measures more.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model.checkpoint import load_model
from model.errors import UserError
from model.generation.sampling import SamplingParams
from model.losses import LossSums
from model.manifest import manifest_sha256, verify
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.content_hashes import samples_sha256
from training.data.mixture import Mixture
from training.data.prepared_data import DataFolders, open_mixture
from training.data.sample_facts import is_single_drawing
from training.data.samples import Sample
from training.evaluation.plots import save_pairs
from training.evaluation.reconstruction import reconstruct
from training.evaluation.replies import Progress, reply_to
from training.params import Params
from training.precision import training_device
from training.registry.evaluation_subject import DECIDING_SPLIT, SUBJECT, EvaluationSubject
from training.registry.lineage import read_lineage

# Which stage's data says how well the model understands, and how well it draws.
UNDERSTANDING_STAGE, DRAWING_STAGE = "stage2", "stage3"
NUM_SAMPLES, NUM_SHOWN = 1024, 16
# Text before a picture, if the model says any.
MAX_NEW_TOKENS = 64


def evaluate_held_out(
    model_dir: Path,
    params: Params,
    folders: DataFolders,
    batch: int,
    *,
    metrics_file: Path,
    plots_dir: Path,
    progress: Progress = lambda part, done, total: None,
) -> dict[str, Any]:
    """Mean losses in nats a token, PSNR of the image tokenizer, and pictures; written as JSON and PNG.

    UserError when the parameters hold nothing out.
    """
    if not params.data.held_out:
        raise UserError("data.held_out is 0: no samples are kept for evaluation")
    verify(model_dir)
    evaluation = HeldOutEvaluation(*load_model(model_dir), params, folders, batch, progress)
    metrics = {SUBJECT: asdict(evaluation.subject(model_dir)), **evaluation.run(plots_dir)}
    metrics_file.parent.mkdir(parents=True, exist_ok=True)
    metrics_file.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    return metrics


@dataclass
class HeldOutEvaluation:
    """One model in memory before the held-out samples of its stages."""

    model: VargptForConditionalGeneration
    processor: VargptProcessor
    params: Params
    folders: DataFolders
    batch: int
    progress: Progress

    def __post_init__(self) -> None:
        self.model.to(training_device())
        stages = (UNDERSTANDING_STAGE, DRAWING_STAGE)
        self._mixtures = {stage: self._opened(stage) for stage in stages}

    def subject(self, model_dir: Path) -> EvaluationSubject:
        """What the metrics are of."""
        held_out = [dataset for mixture in self._mixtures.values() for dataset in _held_out(mixture).datasets]
        return EvaluationSubject(
            weights_sha256=manifest_sha256(model_dir),
            data_md5=read_lineage(model_dir).data_md5 or "",
            prepared_sha256=samples_sha256(held_out),
            split=DECIDING_SPLIT,
            questions=_num_samples(self._mixtures[UNDERSTANDING_STAGE]),
            drawings=_num_samples(self._mixtures[DRAWING_STAGE]),
        )

    def run(self, plots_dir: Path) -> dict[str, Any]:
        """All metrics; the plots are of the first drawings."""
        understanding, drawing = self._losses(UNDERSTANDING_STAGE), self._losses(DRAWING_STAGE)
        examples = list(islice(_drawings(_held_out(self._mixtures[DRAWING_STAGE])), NUM_SHOWN))
        if not examples:
            raise UserError(f"{DRAWING_STAGE} holds out no request for a single picture")
        wanted = [sample.images[0].open() for sample in examples]
        decoded = reconstruct(self.model.image_tokenizer, self.processor, wanted, self.batch)
        plots_dir.mkdir(parents=True, exist_ok=True)
        save_pairs(wanted, self._drawn(examples), ("wanted", "drawn"), plots_dir / "drawings.png")
        save_pairs(wanted, decoded.pictures, ("real", "decoded"), plots_dir / "reconstructions.png")
        scales = [float(mean) for mean in drawing.image_by_scale / drawing.num_image_by_scale]
        return {
            "text": {"loss": float(understanding.text_mean), "tokens": int(understanding.num_text)},
            "image": {
                "loss": float(drawing.image_mean),
                "tokens": int(drawing.num_image_by_scale.sum()),
                **{f"scale_{number}": loss for number, loss in enumerate(scales, start=1)},
            },
            "tokenizer": {"psnr": decoded.psnr, "n": len(wanted)},
        }

    def _opened(self, stage: str) -> Mixture:
        chosen, data = getattr(self.params, stage), self.params.data
        return open_mixture(chosen.mixture, self.folders, data.held_out, self.params.seed, BadRecordLog())

    @torch.no_grad()
    def _losses(self, stage: str) -> LossSums:
        """Of the first held-out samples of a stage, all together."""
        plain = {"pack_tokens": 0, "cached_codes": False, "loader_workers": 0}
        loader = BatchLoader(
            self._mixtures[stage],
            self.processor,
            self.model.config.image_tokenizer_config,
            getattr(self.params, stage).model_copy(update=plain),
            self.params.seed,
            BadRecordLog(),
            self.params.data.bad_record_share,
        )
        device = training_device()
        # Weights that are read in bfloat16 are multiplied in it, beside an image tokenizer in float32.
        is_rounded = self.model.dtype == torch.bfloat16
        sums, count = [], _num_samples(self._mixtures[stage])
        part, batches = f"losses of {stage}", loader.held_out(count)
        self.progress(part, 0, len(batches))
        for number, batch in enumerate(batches, start=1):
            placed = {name: value.to(device) for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=is_rounded):
                sums.append(self.model.loss_sums(**placed))
            self.progress(part, number, len(batches))
        fields = ("text", "num_text", "image_by_scale", "num_image_by_scale")
        return LossSums(*(torch.stack([getattr(one, name) for one in sums]).sum(0) for name in fields))

    def _drawn(self, samples: Sequence[Sample]) -> list[Image.Image]:
        def report(done: int) -> None:
            self.progress("drawings", done, len(samples))

        report(0)
        sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
        replies = reply_to(self.model, self.processor, samples, sampling, self.batch, report)
        return [reply.picture for reply in replies]


def _held_out(mixture: Mixture) -> Mixture:
    assert mixture.held_out is not None
    return mixture.held_out


def _num_samples(mixture: Mixture) -> int:
    return min(NUM_SAMPLES, sum(map(len, _held_out(mixture).datasets)))


def _drawings(mixture: Mixture) -> Iterator[Sample]:
    """Requests for a single picture, each once, in the order of the mixture."""
    seen = set()
    for number in range(sum(map(len, mixture.datasets))):
        if (place := mixture.locate(number)) not in seen:
            seen.add(place)
            sample = mixture.datasets[place[0]][place[1]]
            if is_single_drawing(sample):
                yield sample
