"""A recipe of params.yaml with some of it changed, as options of `vargpt plan` ask for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import preset
from training.params import Params, StageParams, load_params, parse_params
from training.planning.gpus import gpu_named
from training.planning.plan import Assumptions, Plan, plan_stage
from training.planning.workload import Sample, sample_of

LORA_RANK = 16
# The modules that hold most of what a stage trains.
LORA_MODULES = {
    "stage1": ["generation_input_projector", "generation_output_projector"],
    "stage2": ["language_model"],
    "stage3": ["visual_decoder"],
    "joint": ["language_model", "visual_decoder"],
}
# The usual scale of adapters, alpha over rank.
ALPHA_OVER_RANK = 2.0


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What replaces the recipe's; None leaves it. With another batch as many samples are seen as before.

    Args:
        words, targets: Of the mean sample.
    """

    engine: str | None = None
    offload: bool | None = None
    batch: int | None = None
    micro_batch: int | None = None
    pack_tokens: int | None = None
    lora_rank: int | None = None
    lora_modules: Sequence[str] | None = None
    words: float | None = None
    targets: float | None = None


def plan_changed(
    stage: str,
    trains: Sequence[str],
    path: Path,
    size: str | None,
    changes: Changes,
    gpu: str,
    gpus: int,
    assumptions: Assumptions,
) -> Plan:
    """Plan a stage, in which these modules learn, with changes. UserError names what is wrong."""
    params = load_params(path, size)
    changed = changed_params(params, stage, changes)
    recipe: StageParams = getattr(changed, stage)
    return plan_stage(
        stage,
        trains,
        changed,
        preset(changed.preset),
        gpu_named(gpu),
        gpus,
        assumptions,
        _changed_sample(sample_of(recipe.mixture), changes),
    )


def changed_params(params: Params, stage: str, changes: Changes) -> Params:
    """The parameters with changes of one stage, checked like those of a file."""
    values = params.model_dump()
    recipe = values[stage]
    for name in ("engine", "offload", "micro_batch", "pack_tokens"):
        if (value := getattr(changes, name)) is not None:
            recipe[name] = value
    if changes.batch is not None:
        recipe["steps"] = round(recipe["steps"] * recipe["batch"] / changes.batch)
        recipe["batch"] = changes.batch
    if changes.lora_rank is not None or changes.lora_modules is not None:
        recipe["lora"] = _lora(recipe["lora"] or {}, stage, changes)
    return parse_params(values)


def _lora(before: dict[str, Any], stage: str, changes: Changes) -> dict[str, Any]:
    rank = changes.lora_rank or before.get("rank", LORA_RANK)
    modules = changes.lora_modules or before.get("modules") or LORA_MODULES[stage]
    return {
        "rank": rank,
        "alpha": ALPHA_OVER_RANK * rank,
        "dropout": before.get("dropout", 0.0),
        "modules": list(modules),
    }


def _changed_sample(sample: Sample, changes: Changes) -> Sample:
    words = sample.words if changes.words is None else changes.words
    targets = sample.targets if changes.targets is None else changes.targets
    return Sample(words, targets, sample.pictures, sample.drawings)
