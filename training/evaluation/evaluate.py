"""Evaluates a model on held-out scans: questions, drawings and the image tokenizer, as figures and plots."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from model.checkpoint import load_model
from model.errors import UserError
from model.generation.sampling import SamplingParams
from model.manifest import manifest_sha256, verify
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.readers import open_dataset
from training.data.samples import Sample
from training.digits.scenes import Scene
from training.evaluation.frechet import distance_to_real
from training.evaluation.judge import Judge, agreement, train_judge
from training.evaluation.metrics import Drawing, summary
from training.evaluation.plots import save_confusion, save_drawings, save_pairs, save_targets
from training.evaluation.real_pictures import RealPictures
from training.evaluation.reconstruction import Reconstructions, reconstruct
from training.evaluation.replies import NOTHING_DRAWN, ModelReply, Progress, as_answer, as_drawings, reply_to
from training.registry.data_pointer import md5_on_disk
from training.registry.evaluation_subject import SUBJECT, EvaluationSubject

SPLITS = ("test", "validation")
PROMPTS = ("understanding", "drawing")
REAL_RENDERS_PER_SCAN = 4
MAX_NEW_TOKENS = 48
# Renderings apart from those that distances are measured with, which count from 0.
DECODED_SEED = 1000


@dataclass(frozen=True)
class EvaluateParams:
    """Batch size, and the most questions and drawing requests that are put to the model."""

    batch: int
    questions: int
    drawings: int


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of one model on one split, with its drawings and the reconstructions of its image tokenizer."""

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
    floors: Mapping[str, Any] | None = None,
    sampling: SamplingParams | None = None,
    progress: Progress = lambda part, done, total: None,
) -> dict[str, Any]:
    """All figures of a published model on a held-out split; tune on `validation`, report `test`.

    Writes them as JSON, and plots, where places for these are named. The section `subject` says which weights
    they are of and on what they were measured.

    Args:
        floors: What figures must reach, nested like them, for the plots.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {list(SPLITS)}, got {split!r}")
    questions, drawing_prompts = (_samples(prepared_dir / kind, split) for kind in PROMPTS)
    verify(model_dir)
    model, processor = load_model(model_dir)
    progress("judge", 0, 1)
    judge = train_judge(data_dir)
    progress("judge", 1, 1)
    evaluation = Evaluation(
        model=model,
        processor=processor,
        judge=judge,
        questions=questions[: params.questions],
        drawing_prompts=_spread(drawing_prompts, params.drawings),
        data_dir=data_dir,
        split=split,
        batch=params.batch,
        sampling=sampling or SamplingParams(max_new_tokens=MAX_NEW_TOKENS),
        progress=progress,
    )
    result = evaluation.run()
    prompts = prompts_sha256(prepared_dir, split, [*questions, *drawing_prompts])
    metrics = {SUBJECT: asdict(evaluation.subject(model_dir, prompts)), **result.metrics}
    if metrics_file is not None:
        metrics_file.parent.mkdir(parents=True, exist_ok=True)
        metrics_file.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    if plots_dir is not None:
        save_plots(result, floors or {}, plots_dir)
    return metrics


def prompts_sha256(prepared_dir: Path, split: str, samples: Sequence[Sample]) -> str:
    """The hash of a split's files of questions and drawing requests, and of the pictures that they name."""
    digest = hashlib.sha256()
    for kind in PROMPTS:
        digest.update((prepared_dir / kind / f"{split}.json").read_bytes())
    for sample in samples:
        for picture in sample.images:
            digest.update(picture.read())
    return digest.hexdigest()


def save_plots(result: EvaluationResult, floors: Mapping[str, Any], folder: Path) -> list[Path]:
    """Drawings, confusion of digits, figures against targets, and reconstructions, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("drawings", "confusion", "targets", "reconstructions")
    paths = [folder / f"{name}.png" for name in names]
    save_drawings(result.drawings, result.pictures, paths[0])
    save_confusion(result.drawings, paths[1])
    save_targets(result.metrics, floors, paths[2])
    save_pairs(result.real, result.reconstructed, ("real", "decoded"), paths[3])
    return paths


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All metrics of one model in memory on the prompts of one split, judged by one judge."""

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

    def subject(self, model_dir: Path, prepared_sha256: str) -> EvaluationSubject:
        """What the metrics are of, given the model's folder and the hash of the split's prompts."""
        return EvaluationSubject(
            weights_sha256=manifest_sha256(model_dir),
            data_md5=md5_on_disk(self.data_dir),
            prepared_sha256=prepared_sha256,
            split=self.split,
            questions=len(self.questions),
            drawings=len(self.drawing_prompts),
        )

    def run(self) -> EvaluationResult:
        """Put all prompts to the model and judge its replies."""
        answers = [as_answer(reply) for reply in self._replies("questions", self.questions)]
        drawn = self._replies("drawings", self.drawing_prompts)
        drawings, pictures = as_drawings(drawn, self.judge), [reply.picture for reply in drawn]
        metrics = summary(answers, drawings)
        scenes = [drawing.scene for drawing in drawings]
        metrics["draw"] |= self._distance("distances", pictures, scenes)
        metrics["draw"]["without_picture"] = sum(reply.picture is NOTHING_DRAWN for reply in drawn)
        real, shown = RealPictures(self.data_dir, self.split).every(REAL_RENDERS_PER_SCAN, seed=0)
        metrics["judge"] = {**self.judge.accuracy(real, shown), "n": len(real)}
        result = self._reconstructed("reconstructions", real)
        shares = agreement(self.judge.judge(result.pictures), shown)
        metrics["tokenizer"] = {
            "psnr": result.psnr,
            "judge": shares.pop("all_right"),
            **shares,
            "n": len(real),
        }
        # No drawing can be closer to real ones than the training pictures are once they are made of codes.
        train = RealPictures(self.data_dir, "train").like(scenes, seed=DECODED_SEED)
        decoded = self._reconstructed("reconstructions of training pictures", train)
        metrics["tokenizer"] |= self._distance("their distances", decoded.pictures, scenes)
        return EvaluationResult(metrics, drawings, pictures, real, result.pictures)

    def _distance(
        self, part: str, pictures: Sequence[Image.Image], scenes: Sequence[Scene]
    ) -> dict[str, float]:
        self.progress(part, 0, 1)
        found = distance_to_real(self.judge, pictures, scenes, self.data_dir, self.split)
        self.progress(part, 1, 1)
        return found

    def _reconstructed(self, part: str, pictures: Sequence[Image.Image]) -> Reconstructions:
        report = self._report(part, len(pictures))
        return reconstruct(self.model.image_tokenizer, self.processor, pictures, self.batch, report)

    def _replies(self, part: str, samples: Sequence[Sample]) -> list[ModelReply]:
        report = self._report(part, len(samples))
        return reply_to(self.model, self.processor, samples, self.sampling, self.batch, report)

    def _report(self, part: str, total: int) -> Callable[[int], None]:
        """Begins a part; what is to be called with how much of it is done."""
        self.progress(part, 0, total)
        return lambda done: self.progress(part, done, total)


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
