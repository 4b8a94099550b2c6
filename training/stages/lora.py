"""Low-rank adapters of a stage, through peft: added to a model, merged where it is published, saved apart.

Source: Hu et al. 2021, "LoRA: low-rank adaptation of large language models" (arXiv:2106.09685).
"""

import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from model.errors import UserError
from training.checkpoints.fragments import Fragments
from training.params import NO_ADAPTER, LoraParams

# As peft names an adapter's two matrices in a model, and in its own files.
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapters(model: nn.Module, lora: LoraParams) -> None:
    """Freeze the recipe's modules and give adapters to their linear maps, in place; only the adapters learn.

    UserError names a module that is not there, or has no linear map.
    """
    # Takes seconds to import.
    from peft import inject_adapter_in_model

    for path in lora.modules:
        _module_at(model, path).requires_grad_(False)
    # peft freezes all that is no adapter.
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inject_adapter_in_model(_config(model, lora), model)
    for parameter in learning:
        parameter.requires_grad_(True)


def merged(weight: Tensor, name: str, fragments: Fragments, kind: str, lora: LoraParams) -> Tensor:
    """A frozen weight with its adapter added, if it has one."""
    path = name.removesuffix(".weight")
    if path + DOWN not in fragments.kinds:
        return weight
    down = fragments.whole(kind, path + DOWN, (lora.rank, weight.shape[1]))
    up = fragments.whole(kind, path + UP, (weight.shape[0], lora.rank))
    return (weight.float() + lora.alpha / lora.rank * (up @ down)).to(weight.dtype)


def save_adapters(model: nn.Module, fragments: Fragments, kind: str, lora: LoraParams, folder: Path) -> None:
    """Write the adapters to a new folder as peft reads them: weights, and `adapter_config.json`."""
    adapters = {}
    for name, parameter in model.named_parameters():
        if name.endswith((DOWN, UP)):
            shape = getattr(parameter, "ds_shape", parameter.shape)
            saved_name = f"base_model.model.{name.replace('.default.', '.')}"
            adapters[saved_name] = fragments.whole(kind, name, shape)
    beside = folder.with_suffix(".tmp")
    for stale in (beside, folder):
        shutil.rmtree(stale, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(adapters, beside / ADAPTER_WEIGHTS, {"format": "pt"})
    _config(model, lora).save_pretrained(beside)
    os.replace(beside, folder)


def _config(model: nn.Module, lora: LoraParams) -> Any:
    from peft import LoraConfig

    targets = {name for path in lora.modules for name in _linear_maps(model, path)}
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )


def _linear_maps(model: nn.Module, path: str) -> Set[str]:
    found = set(_linear_maps_below(_module_at(model, path), path))
    if not found:
        raise UserError(f"lora.modules: {path} has no linear map")
    return found


def _linear_maps_below(module: nn.Module, path: str) -> Iterator[str]:
    for name, part in module.named_modules(prefix=path):
        inner = name.removesuffix(".base_layer")
        is_adapter = "lora_A" in name or "lora_B" in name
        if isinstance(part, nn.Linear) and not is_adapter and inner.split(".")[-1] != NO_ADAPTER:
            yield inner


def _module_at(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise UserError(f"lora.modules: the model has no module {path!r}") from None
