"""Transformer blocks of a model in training: computed again in the backward pass, compiled, or both."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.modeling import VargptForConditionalGeneration
from training.params import StageParams


def prepare_blocks(model: VargptForConditionalGeneration, stage: StageParams) -> None:
    """Change how the blocks of vision tower, language model and visual decoder compute, in place.

    Frozen blocks too: stages 1 and 3 send gradients back through the whole language model, of which
    transformers' own checkpointing keeps all activations, since a frozen model is in evaluation mode.
    """
    for block in blocks_of(model):
        forward: Callable[..., Any] = block.forward
        if stage.compile:
            forward = torch.compile(forward)
        if stage.checkpoint_activations:
            forward = partial(_recomputed, forward)
        block.forward = forward


def blocks_of(model: VargptForConditionalGeneration) -> list[nn.Module]:
    """All transformer blocks, in the order in which a batch passes them."""
    return [
        *model.vision_tower.clip.encoder.layers,
        *model.language_model.model.layers,
        *model.visual_decoder.blocks,
    ]


def _recomputed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A block's result, of which only the input is kept for the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)
