"""AdamW with weight decay for matrices, and none for biases, norms, scales and position embeddings.

Source: the recipe of VAR (arXiv:2404.02905), whose list of parameters without decay this is, in our names.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training.params import OptimizerParams

# Components of parameter names: position and scale embeddings of the visual decoder.
NO_DECAY = frozenset({"start_position", "position", "scale_embedding"})


def make_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    params: OptimizerParams,
    optimizer_class: type[torch.optim.AdamW] = torch.optim.AdamW,
) -> torch.optim.AdamW:
    """AdamW of these parameters, in two groups; `peak` of a group is `lr`, for the schedule."""
    decaying: list[nn.Parameter] = []
    not_decaying: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (decaying if decays(name, parameter) else not_decaying).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": params.weight_decay, "peak": lr},
        {"params": not_decaying, "weight_decay": 0.0, "peak": lr},
    ]
    filled = [group for group in groups if group["params"]]
    return optimizer_class(filled, lr=lr, betas=(params.beta1, params.beta2), fused=True)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has weight decay."""
    return parameter.squeeze().dim() > 1 and not NO_DECAY.intersection(name.split("."))
