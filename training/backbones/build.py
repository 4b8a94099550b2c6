"""Trains all backbones of a tiny model, and assembles the model that stage 1 starts from."""

from collections.abc import Callable
from pathlib import Path

import torch

from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.backbones.backbone_checkpoints import never_stop
from training.backbones.language_model import TEXT_KINDS, tiny_processor, train_text_tokenizer
from training.backbones.worker_processes import OnBackboneStep, run_workers
from training.backbones.workers import BACKBONES, BackboneTask, unfinished_workers
from training.data.content_hashes import files_sha256
from training.errors import Stopped
from training.params import Params
from training.tiny.projector_init import initialize_projectors

# The preset whose backbones are small enough to be trained here; those of others are imported.
TRAINED_PRESET = "tiny"
CHECKPOINT_EVERY = 100


def make_backbones(
    params: Params,
    prepared: Path,
    folder: Path,
    on_step: OnBackboneStep,
    should_stop: Callable[[], bool] = never_stop,
    identity: str = "",
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    """Train the backbones that `folder/parts` does not hold yet, and assemble the model of all of them.

    The same parameters and data give the same weights, bit for bit, however often training was stopped.

    Args:
        identity: Hash of whatever the backbones depend on besides parameters and prepared data.
        checkpoint_every: Steps between two checkpoints of a backbone.

    Raises:
        UserError: data or parameters are wrong.
        OSError: a disk failed, also when it had to save for a stop, or a signal ended a worker process.
        RuntimeError: another error ended a worker process.
        Stopped: `should_stop` returned True, and everything so far is saved.
    """
    if params.preset != TRAINED_PRESET:
        raise UserError(
            f"preset {params.preset!r} is not trained from nothing; "
            "import published weights with: vargpt import-weights"
        )
    text_tokenizer = train_text_tokenizer(prepared, preset(params.preset))
    task = BackboneTask(
        preset=params.preset,
        params=params.backbones,
        optimizer=params.optimizer,
        prepared=prepared,
        checkpoint_dir=folder / "parts",
        seed=params.seed,
        precision=params.precision,
        identity=f"{identity} {_prepared_sha256(prepared)}",
        text_tokenizer=text_tokenizer,
        checkpoint_every=checkpoint_every,
    )
    try:
        run_workers(unfinished_workers(task), on_step, should_stop)
    except Stopped as stopped:
        raise Stopped(f"backbones {stopped}") from None
    return assemble(task)


def _prepared_sha256(prepared: Path) -> str:
    """Hash of the prepared data that backbones learn from: scenes, and conversations without their images."""
    conversations = (prepared / kind / "train.json" for kind in TEXT_KINDS)
    return files_sha256([*sorted((prepared / "scenes").glob("*.tar")), *conversations])


def assemble(task: BackboneTask) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    """The model of all trained backbones, with projectors initialized for stage 1, and its processor."""
    config = preset(task.preset)
    processor = tiny_processor(config, task.text_tokenizer)
    config.null_prompt = processor.null_prompt()
    torch.manual_seed(task.seed)
    model = VargptForConditionalGeneration(config)
    for name, path in BACKBONES.items():
        weights = task.checkpoints(name).load_trained()
        assert weights is not None, f"{name} is not trained"
        model.get_submodule(path).load_state_dict(weights)
    initialize_projectors(model)
    return model.eval(), processor
