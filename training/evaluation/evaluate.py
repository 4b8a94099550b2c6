"""EvaluationResult on held-out scans: questions, drawings and the image tokenizer, as figures and plots."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from model.checkpoint import load_model
from model.errors import UserError
from model.generation.sampling import SamplingParams
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.readers import open_dataset
from training.data.samples import Sample
from training.digits.scenes import Scene
from training.evaluation.frechet import distance_to_real
from training.evaluation.judge import Judge, agreement, train_judge
from training.evaluation.metrics import Drawing, summary
from training.evaluation.plots import save_confusion, save_drawings, save_reconstructions, save_targets
from training.evaluation.real_pictures import RealPictures
from training.evaluation.reconstruction import Reconstructions, reconstruct
from training.evaluation.replies import NOTHING_DRAWN, ModelReply, as_answer, as_drawings, reply_to

SPLITS = ("test", "validation")
REAL_RENDERS_PER_SCAN = 4
MAX_NEW_TOKENS = 48
# Renderings apart from those that distances are measured with, which count from 0.
DECODED_SEED = 1000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class EvaluateParams:
    """Requests answered together, and at most how many questions and drawings are asked for."""

    batch: int
    questions: int
    drawings: int


@dataclass(frozen=True)
class EvaluationResult:
    """All figures, and the pictures behind them."""

    metrics: dict[str, Any]
    drawings: list[Drawing]
    pictures: list[Image.Image]
    real: list[Image.Image]
    reconstructed: list[Image.Image]


def evaluate(
    model_dir: Path,
    prepared_dir: Path,
    data_dir: Path,
    params: EvaluateParams,
    split: str = "test",
    *,
    metrics_file: Path | None = None,
    plots_dir: Path | None = None,
    sampling: SamplingParams | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """All figures of a published model on a held-out split; tune on `validation`, report `test`.

    Writes them as JSON, and plots, where places for these are named.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {list(SPLITS)}, got {split!r}")
    questions, drawing_prompts = (
        _samples(prepared_dir / kind, split) for kind in ("understanding", "drawing")
    )
    model, processor = load_model(model_dir)
    progress("judge")
    evaluation = Evaluation(
        model=model,
        processor=processor,
        judge=train_judge(data_dir),
        questions=questions[: params.questions],
        drawing_prompts=_spread(drawing_prompts, params.drawings),
        data_dir=data_dir,
        split=split,
        batch=params.batch,
        sampling=sampling or SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
        progress=progress,
    )
    result = evaluation.run()
    if metrics_file is not None:
        metrics_file.parent.mkdir(parents=True, exist_ok=True)
        metrics_file.write_text(json.dumps(result.metrics, indent=1, allow_nan=False) + "\n")
    if plots_dir is not None:
        save_plots(result, plots_dir)
    return result.metrics


def save_plots(result: EvaluationResult, folder: Path) -> list[Path]:
    """Drawings, confusion of digits, figures against targets, and reconstructions, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("drawings", "confusion", "targets", "reconstructions")
    paths = [folder / f"{name}.png" for name in names]
    save_drawings(result.drawings, result.pictures, paths[0])
    save_confusion(result.drawings, paths[1])
    save_targets(result.metrics, paths[2])
    save_reconstructions(result.real, result.reconstructed, paths[3])
    return paths


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model in memory before one judge and the prompts of a held-out split."""

    model: VargptForConditionalGeneration
    processor: VargptProcessor
    judge: Judge
    questions: Sequence[Sample]
    drawing_prompts: Sequence[Sample]
    data_dir: Path
    split: str
    batch: int
    sampling: SamplingParams
    progress: Progress

    def run(self) -> EvaluationResult:
        """Ask everything, judge everything."""
        answers = [as_answer(reply) for reply in self._replies("questions", self.questions)]
        drawn = self._replies("drawings", self.drawing_prompts)
        drawings, pictures = as_drawings(drawn, self.judge), [reply.picture for reply in drawn]
        metrics = {"split": self.split, **summary(answers, drawings)}
        scenes = [drawing.scene for drawing in drawings]
        self.progress("distances")
        metrics["draw"] |= self._distance(pictures, scenes)
        metrics["draw"]["without_picture"] = sum(reply.picture is NOTHING_DRAWN for reply in drawn)
        real, shown = RealPictures(self.data_dir, self.split).every(REAL_RENDERS_PER_SCAN, seed=0)
        metrics["judge"] = {**self.judge.accuracy(real, shown), "n": len(real)}
        self.progress("reconstructions")
        result = self._reconstructed(real)
        shares = agreement(self.judge.judge(result.pictures), shown)
        metrics["tokenizer"] = {
            "psnr": result.psnr,
            "judge": shares.pop("all_right"),
            **shares,
            "n": len(real),
        }
        # No drawing can be closer to real ones than the training pictures are once they are made of codes.
        decoded = self._reconstructed(RealPictures(self.data_dir, "train").like(scenes, seed=DECODED_SEED))
        metrics["tokenizer"] |= self._distance(decoded.pictures, scenes)
        return EvaluationResult(metrics, drawings, pictures, real, result.pictures)

    def _distance(self, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
        return distance_to_real(self.judge, pictures, scenes, self.data_dir, self.split)

    def _reconstructed(self, pictures: Sequence[Image.Image]) -> Reconstructions:
        return reconstruct(self.model.image_tokenizer, self.processor, pictures, self.batch)

    def _replies(self, name: str, samples: Sequence[Sample]) -> list[ModelReply]:
        def report(done: int) -> None:
            self.progress(f"{name} {done}/{len(samples)}")

        return reply_to(self.model, self.processor, samples, self.sampling, self.batch, report)


def _samples(folder: Path, split: str) -> Sequence[Sample]:
    bad_records = BadRecordLog()
    samples = open_dataset(folder.name, folder / f"{split}.json", folder, bad_records)
    # A test set with holes would measure something else.
    bad_records.check(0.0)
    return samples


def _spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most so many, evenly from the whole: drawings are sorted by what they show."""
    count = min(limit, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]
