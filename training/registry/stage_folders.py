"""The folders of a stage: the model it starts from, its checkpoints, the model it publishes, its pointer."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import load_model, manifest_sha256, verify
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.params import Params
from training.registry.data_pointer import data_md5
from training.registry.git_history import git_facts
from training.registry.lineage import Lineage, config_sha256, write_lineage
from training.run_context import ImageFacts

OUTPUTS = "outputs"
IDENTITY_LENGTH = 12
# Parameters that may change between two starts of one training, as after running out of memory.
NOT_DECIDING = frozenset(
    {
        "micro_batch",
        "engine",
        "offload",
        "checkpoint_activations",
        "compile",
        "cached_codes",
        "loader_workers",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "max_skipped",
    }
)
SHARED_PARAMS = ("size", "preset", "precision", "seed")


@dataclass(frozen=True)
class Pointer:
    """The content of artifacts/STAGE.json, which names the model of a finished stage."""

    stage: str
    model: str
    weights_sha256: str
    run_id: str
    seconds: float


@dataclass(frozen=True)
class StageFolders:
    """The folders of one stage.

    Args:
        outputs: Models and checkpoints of all stages; pointers lie beside it, in `artifacts`.
        data_pointer: The .dvc file that names the raw data.
    """

    stage: str
    prepared: Path
    outputs: Path
    data_pointer: Path

    @property
    def folder(self) -> Path:
        return self.outputs / self.stage

    @property
    def model_dir(self) -> Path:
        return self.model_of(self.stage)

    def pointer_path(self, stage: str) -> Path:
        """The small file by which a finished stage is known."""
        return self.outputs.parent / "artifacts" / f"{stage}.json"

    def load(self, stage: str) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
        """The model that another stage has made, whole. ValueError says what is missing or damaged."""
        folder = self.model_of(stage)
        if not folder.is_dir():
            raise UserError(f"{self.stage} starts from {stage}, but there is no {folder}; run {stage} first")
        verify(folder)
        return load_model(folder)

    def identity(self, params: Params, start_sha256: str, samples_sha256: str) -> str:
        """A hash of what is learned: checkpoints of another recipe, start or data are not continued."""
        config = _deciding(config_of(params.model_dump(), self.stage), self.stage)
        facts = {"config": config, "start": start_sha256, "samples": samples_sha256}
        facts["data"] = data_md5(self.data_pointer)
        return config_sha256(facts)[:IDENTITY_LENGTH]

    def lineage(self, params: Params, image: ImageFacts | None, parent_stage: str | None = None) -> Lineage:
        """The record of this run, as far as it is known before it has learned anything.

        Args:
            image: The container image that this runs in; its commit counts where there is no history.
            parent_stage: The stage whose model this one starts from; None for the first.
        """
        image = image or ImageFacts()
        found, is_dirty = git_facts(self.data_pointer.resolve().parent, image.commit, image.is_dirty)
        return Lineage(
            stage=self.stage,
            size=params.size,
            precision=params.precision,
            data_md5=data_md5(self.data_pointer),
            config_sha256=config_sha256(config_of(params.model_dump(), self.stage)),
            parent_stage=parent_stage,
            parent_weights_sha256=self.start_sha256(parent_stage) if parent_stage else None,
            git_commit=found,
            git_dirty=is_dirty,
            training_image=image.name,
        )

    def model_of(self, stage: str) -> Path:
        """The folder of the model that a stage makes."""
        return self.outputs / stage / "model"

    def publish(self, write: Callable[[Path], str], lineage: Mapping[str, Any]) -> str:
        """Put a model where the next stage looks, whole or not at all; the hash of its manifest.

        Args:
            write: Writes the model to a folder that is not there yet, and returns the hash.
        """
        beside, old = self.folder / "model.tmp", self.folder / "model.old"
        for stale in (beside, old):
            shutil.rmtree(stale, ignore_errors=True)
        weights = write(beside)
        write_lineage(Lineage(**{**lineage, "weights_sha256": weights}), beside)
        if self.model_dir.exists():
            os.replace(self.model_dir, old)
        os.replace(beside, self.model_dir)
        shutil.rmtree(old, ignore_errors=True)
        return weights

    def point(self, weights: str, run_id: str, seconds: float) -> None:
        """Write the pointer, last of all."""
        path = self.pointer_path(self.stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        pointer = Pointer(self.stage, str(self.model_dir), weights, run_id, round(seconds, 1))
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(asdict(pointer), indent=1) + "\n")
        os.replace(beside, path)

    def start_sha256(self, stage: str) -> str:
        """The hash of the weights that a stage starts from."""
        return manifest_sha256(self.model_of(stage))


def point_to_import(model_dir: Path, weights: str, seconds: float) -> Path | None:
    """Point to an import as to a stage's model, where it lies as one: outputs/STAGE/model; the pointer."""
    outputs = model_dir.parent.parent
    if model_dir.name != "model" or outputs.name != OUTPUTS:
        return None
    folders = StageFolders(model_dir.parent.name, outputs, outputs, outputs)
    folders.point(weights, "", seconds)
    return folders.pointer_path(folders.stage)


def _deciding(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """A configuration without what decides only how quickly the same is learned, and how closely rounded."""
    section = {key: value for key, value in config[stage].items() if key not in NOT_DECIDING}
    return {key: value for key, value in config.items() if key != "precision"} | {stage: section}


def config_of(values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Those values of params.yaml that decide what a stage learns. KeyError when one is not there."""
    return {name: values[name] for name in (*SHARED_PARAMS, "prepare", "optimizer", stage)}


def tracked_params(params: Params, stage: str) -> dict[str, Any]:
    """The parameters of a stage's run in MLflow; `lr` and the like have the same name in every stage."""
    config = config_of(params.model_dump(), stage)
    return {"stage": stage, **config.pop(stage), **config}
