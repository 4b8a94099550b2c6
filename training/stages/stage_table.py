"""Table of the stages: which modules each of them trains; all others are frozen.

Source: the figure of arXiv:2501.12327. The released code of stage 2 freezes the understanding projector; the
figure trains it, and so do we.
"""

from dataclasses import dataclass

from torch import nn

from model.errors import UserError
from training.params import LoraParams
from training.stages.lora import add_adapters

GENERATION_PROJECTORS = ("generation_input_projector", "generation_output_projector")


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Args:
        trains: Paths of the modules that learn.
        starts_from: The stage whose weights it starts from.
    """

    name: str
    trains: tuple[str, ...]
    starts_from: str


STAGES = {
    "stage1": Stage("stage1", (*GENERATION_PROJECTORS, "visual_decoder.start_embedding"), "backbones"),
    "stage2": Stage("stage2", ("language_model", "understanding_projector"), "stage1"),
    "stage3": Stage("stage3", (*GENERATION_PROJECTORS, "visual_decoder"), "stage2"),
    # Not in the paper, to measure what its freezing costs: all but the vision tower and the image tokenizer.
    "joint": Stage(
        "joint",
        ("language_model", "understanding_projector", *GENERATION_PROJECTORS, "visual_decoder"),
        "stage2",
    ),
}


def stage_named(name: str) -> Stage:
    """The stage of this name. UserError lists the names there are."""
    if name not in STAGES:
        raise UserError(f"stage must be one of {list(STAGES)}, got {name!r}")
    return STAGES[name]


def freeze_for(
    model: nn.Module, stage: Stage, lora: LoraParams | None = None
) -> list[tuple[str, nn.Parameter]]:
    """Freeze all but the stage's modules, in place; what learns by name, in the model's order.

    With LoRA, its modules are frozen too, and adapters of random and zero weights learn in their place.
    """
    model.requires_grad_(False).eval()
    for path in stage.trains:
        model.get_submodule(path).requires_grad_(True).train()
    if lora is not None:
        add_adapters(model, lora)
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
