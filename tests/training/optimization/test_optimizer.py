"""Laws of AdamW: which parameters decay, and that all else comes from the parameters file."""

import pytest
import torch
from torch import nn

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from training.optimization.optimizer import decays, make_adamw
from training.params import OptimizerParams


@pytest.fixture(scope="module")
def named():
    with torch.device("meta"):
        return dict(VargptForConditionalGeneration(preset("tiny")).named_parameters())


def test_positions_scales_norms_and_biases_do_not_decay_and_all_matrices_do(named):
    decoder = {
        name.removeprefix("visual_decoder."): p for name, p in named.items() if "visual_decoder." in name
    }
    without_decay = {name for name, parameter in decoder.items() if not decays(name, parameter)}

    # Source: the list of VAR's training code, in which class and word embeddings do decay.
    assert {"start_position", "position", "scale_embedding.weight"} <= without_decay
    assert {name for name in without_decay if name.endswith(".bias")} == {
        n for n in decoder if n.endswith(".bias")
    }
    assert all(f"blocks.{index}.attention.log_scale" in without_decay for index in range(4))
    assert {"start_embedding.weight", "word_embedding.weight", "head.weight"}.isdisjoint(without_decay)
    assert not decays("language_model.model.norm.weight", named["language_model.model.norm.weight"])


def test_decay_and_betas_are_those_of_the_parameters():
    net = nn.Linear(3, 2)
    params = OptimizerParams(weight_decay=0.25, beta1=0.5, beta2=0.75, clip_norm=1.0)

    adamw = make_adamw(net.named_parameters(), 0.1, params)

    assert [(group["weight_decay"], len(group["params"])) for group in adamw.param_groups] == [
        (0.25, 1),
        (0.0, 1),
    ]
    assert {group["betas"] for group in adamw.param_groups} == {(0.5, 0.75)}
    assert {group["peak"] for group in adamw.param_groups} == {0.1}
