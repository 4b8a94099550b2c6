"""Imports published weights as a model of ours, tensor by tensor: `vargpt import-weights`.

Memory holds one tensor at a time, whatever there is in all; a folder appears whole or not at all; the same
sources and choices give the same bits.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import read_config
from model.config import preset as preset_named
from model.errors import UserError
from model.manifest import read_manifest, verify, write_manifest
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import published_text_tokenizer
from model.weight_files import write_weights
from training.backbones.import_plan import FLOAT32_PARTS, ImportPlan, ImportSources, plan_import
from training.backbones.import_report import ImportReport, read_choices, report_of
from training.backbones.import_tensors import OnProgress, TensorMaker, compare, no_progress
from training.backbones.new_folder import new_folder
from training.registry.lineage import hashes_of_sources, imported_lineage, write_lineage
from training.run_context import ImageFacts

_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ImportChoices:
    """What the result is like. UserError for a type that weights are not stored in.

    Args:
        preset: The architecture; a base has its own.
        dtype: Name of the type of all weights but those of `float32_parts`.
        float32_parts: Parts that are stored in float32 where they were not published in `dtype` anyway.
        seed: Of what starts from random weights.
    """

    preset: str = "7b"
    dtype: str = "bfloat16"
    float32_parts: frozenset[str] = FLOAT32_PARTS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise UserError(f"dtype must be one of {list(_TYPES)}, got {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return _TYPES[self.dtype]


@dataclass(frozen=True)
class Imported:
    """A folder of imported weights, the SHA-256 of its manifest, and the account of the import."""

    folder: Path
    weights_sha256: str
    report: ImportReport
    seconds: float


def import_weights(
    sources: ImportSources,
    out: Path,
    choices: ImportChoices | None = None,
    *,
    must_be_whole: bool = False,
    is_replaced: bool = False,
    is_verified: bool = False,
    on_progress: OnProgress = no_progress,
    image: ImageFacts | None = None,
    run_id: str | None = None,
) -> Imported:
    """Write a model folder made of published weights, with its report and its lineage.

    Parts that no source has are left out, and the folder is then no model until another import takes it as
    its base; the generation projectors, which nobody publishes alone, start from random weights.

    Args:
        out: A new folder, unless `is_replaced`.
        must_be_whole: UserError unless all parts are there.
        is_verified: Compare every written tensor with its source before the folder appears.
        image: The container image that this runs in, for the record.
        run_id: The run that tracks the import, for the record.

    Raises:
        UserError: names the file and the key that is missing, unknown or of another shape.
    """
    began, out, choices = time.monotonic(), Path(out), choices or ImportChoices()
    if out.exists() and not is_replaced:
        raise UserError(f"{out} exists already; name a new folder")
    plan, processor = _prepare(sources, choices)
    if must_be_whole and plan.missing_parts:
        raise UserError(f"no source has {', '.join(plan.missing_parts)}: name the others, too")
    with new_folder(out, plan.nbytes, is_replaced) as beside:
        report, hashes = _write(plan, choices, beside, on_progress)
        if processor is not None:
            processor.save_pretrained(beside)
        report.write(beside)
        weights_sha256 = write_manifest(beside, hashes)
        if is_verified:
            compare(plan, choices.seed, beside, on_progress)
        sources_sha256 = _sources_sha256(sources, on_progress)
        write_lineage(imported_lineage(sources_sha256, weights_sha256, image, run_id), beside)
    return Imported(out, weights_sha256, report, time.monotonic() - began)


def verify_import(sources: ImportSources, folder: Path, on_progress: OnProgress = no_progress) -> None:
    """Compare every tensor of an import with its source, bit by bit, and all files with the manifest.

    Raises:
        UserError: names what differs.
    """
    verify(folder)
    dtype, float32_parts, seed = read_choices(folder)
    config = read_config(folder)
    compare(plan_import(sources, config, dtype, float32_parts), seed, folder, on_progress)


def _prepare(sources: ImportSources, choices: ImportChoices) -> tuple[ImportPlan, VargptProcessor | None]:
    """What to write, and the processor where one of the sources has a text tokenizer."""
    config, processor = preset_named(choices.preset), None
    if sources.base:
        verify(sources.base)
        config = read_config(sources.base)
        if (sources.base / "processor_config.json").is_file():
            processor = VargptProcessor.from_pretrained(sources.base, local_files_only=True)
    plan = plan_import(sources, config, choices.torch_dtype, choices.float32_parts)
    if source := sources.vargpt or sources.llava:
        processor = VargptProcessor.for_config(config, published_text_tokenizer(source, config))
    if processor is not None:
        config.null_prompt = processor.null_prompt()
    return plan, processor


def _write(
    plan: ImportPlan, choices: ImportChoices, folder: Path, on_progress: OnProgress
) -> tuple[ImportReport, dict[str, str]]:
    """Write configuration and weights; the report, and the SHA-256 of every file of weights."""
    config = plan.config
    config.dtype, config.architectures = choices.dtype, [VargptForConditionalGeneration.__name__]
    config.save_pretrained(folder)
    maker = TensorMaker(plan, choices.seed)
    rounded: dict[str, bool] = {}
    done = 0

    def tensor_of(name: str) -> Tensor:
        nonlocal done
        on_progress("import", done, plan.nbytes)
        tensor, rounded[name] = maker.make(name)
        done += tensor.nbytes
        return tensor

    hashes = write_weights(folder, plan.layout, tensor_of)
    on_progress("import", done, plan.nbytes)
    report = report_of(
        plan,
        rounded,
        dtype=choices.torch_dtype,
        float32_parts=choices.float32_parts,
        seed=choices.seed,
    )
    return report, hashes


def _sources_sha256(sources: ImportSources, on_progress: OnProgress) -> dict[str, str]:
    """SHA-256 of every file that was read; a base was verified, its manifest has those of its files."""
    paths, hashes = sources.paths, {}
    if base := paths.pop("base", None):
        hashes = {f"{base.name}/{name}": str(entry["sha256"]) for name, entry in read_manifest(base).items()}
    on_progress("hash sources", 0, len(paths))
    hashes |= hashes_of_sources(paths.values())
    on_progress("hash sources", len(paths), len(paths))
    return hashes
