"""The parts that VARGPT starts from: trained from nothing for `tiny`, imported for `7b`."""

from collections.abc import Callable
from pathlib import Path

import torch

from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from training.backbones.language_model import WORDS, learn_text_tokenizer, tiny_processor
from training.backbones.part_checkpoints import never
from training.backbones.parts import PARTS, BackboneTask, unfinished_workers
from training.backbones.worker_processes import PartReport, run_workers
from training.data.content_hashes import files_sha256
from training.errors import Stopped
from training.params import Params
from training.tiny.projector_init import initialize_projectors

# The preset whose parts are small enough to be trained from nothing.
TRAINED_PRESET = "tiny"
CHECKPOINT_EVERY = 100


def make_backbones(
    params: Params,
    prepared: Path,
    folder: Path,
    report: PartReport,
    should_stop: Callable[[], bool] = never,
    identity: str = "",
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    """Train all parts, or go on with what `folder/parts` keeps of them, and put them together.

    Parts learn side by side where they can. The same parameters and data give the same weights, bit for bit,
    however often the run was stopped.

    Args:
        report: Called with part, step counted from 0, and losses.
        identity: Names whatever the parts depend on besides parameters and prepared data.

    Raises:
        ValueError: what the user must mend.
        RuntimeError: a process that trained a part has died.
        Stopped: asked to stop; everything up to here is kept.
    """
    if params.preset != TRAINED_PRESET:
        raise UserError(
            f"preset {params.preset!r} is not trained from nothing; "
            "import published weights with: vargpt import-weights"
        )
    text_tokenizer = learn_text_tokenizer(prepared, preset(params.preset))
    task = BackboneTask(
        preset=params.preset,
        params=params.backbones,
        optimizer=params.optimizer,
        prepared=prepared,
        parts=folder / "parts",
        seed=params.seed,
        precision=params.precision,
        identity=f"{identity} {_prepared_sha256(prepared)}",
        text_tokenizer=text_tokenizer,
        checkpoint_every=checkpoint_every,
    )
    try:
        run_workers(unfinished_workers(task), report, should_stop)
    except Stopped as interrupted:
        raise Stopped(f"backbones {interrupted}") from None
    return assemble(task)


def _prepared_sha256(prepared: Path) -> str:
    """The hash of all scenes and conversations that parts learn from; pictures of conversations are not."""
    conversations = (prepared / kind / "train.json" for kind in WORDS)
    return files_sha256([*sorted((prepared / "scenes").glob("*.tar")), *conversations])


def assemble(task: BackboneTask) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    """The model of all parts that `task` has learned, joined by projectors as stage 1 finds them."""
    config = preset(task.preset)
    processor = tiny_processor(config, task.text_tokenizer)
    config.null_prompt = processor.null_prompt()
    torch.manual_seed(task.seed)
    model = VargptForConditionalGeneration(config)
    for name, path in PARTS.items():
        weights = task.checkpoints(name).finished()
        assert weights is not None, f"{name} is not done"
        model.get_submodule(path).load_state_dict(weights)
    initialize_projectors(model)
    return model.eval(), processor
