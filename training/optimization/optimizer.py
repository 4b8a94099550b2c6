"""AdamW over what learns: matrices decay; biases, norms, scales and positions do not.

Source: the recipe of VAR (arXiv:2404.02905), whose list of names without decay this is, in our names.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training.params import OptimizerParams

# Parts of parameter names: position and scale embeddings of the visual decoder.
NO_DECAY = frozenset({"start_position", "position", "scale_embedding"})


def make_adamw(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    params: OptimizerParams,
    kind: type[torch.optim.AdamW] = torch.optim.AdamW,
) -> torch.optim.AdamW:
    """The optimizer of these parameters; each group keeps its peak rate as `peak`, for the schedule."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        (decaying if decays(name, parameter) else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": params.weight_decay, "peak": lr},
        {"params": others, "weight_decay": 0.0, "peak": lr},
    ]
    filled = [group for group in groups if group["params"]]
    return kind(filled, lr=lr, betas=(params.beta1, params.beta2), fused=True)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls at a parameter."""
    return parameter.squeeze().dim() > 1 and not NO_DECAY.intersection(name.split("."))
