"""Laws of the language model's steps: they equal transformers' forward, whatever the rows and lengths."""

import copy

import pytest
import torch
from transformers import LlamaConfig

from model.backbones import LanguageModel
from model.generation.cached_language_model import CachedLanguageModel


@pytest.fixture(scope="module", params=[6, 2], ids=["one-key-per-head", "grouped-keys"])
def language_model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=request.param,
        vocab_size=50,
        max_position_embeddings=64,
    )
    model = LanguageModel(config).eval()
    for parameter in model.parameters():
        is_norm = parameter.dim() == 1  # a norm whose weights are all one would hide
        torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.3 if is_norm else 0.1)
    return model


def embedded(rows, count, seed=0):
    return torch.randn(rows, count, 96, generator=torch.Generator().manual_seed(seed))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_steps_of_any_size_equal_one_pass_of_transformers(language_model):
    inputs = embedded(2, 20)
    steps, states, start = CachedLanguageModel(language_model), [], 0
    steps.reserve(2, 20)

    for count in (5, 1, 1, 4, 9):
        states.append(steps.step(inputs[:, start : start + count], [0, 1], [start, start]))
        start += count

    close(torch.cat(states, dim=1), language_model.states(inputs, use_cache=False))


@torch.no_grad()
def test_rows_of_different_lengths_in_any_order_do_not_see_each_other(language_model):
    inputs = embedded(3, 12)
    whole = language_model.states(inputs, use_cache=False)
    steps = CachedLanguageModel(language_model)
    steps.reserve(3, 12)
    steps.step(inputs[:, :6], [0, 1, 2], [0, 0, 0])  # rows 0 and 2 take back what is padding below

    first = steps.step(inputs[[2, 0], 3:5], [2, 0], [3, 3])
    second = steps.step(torch.stack([inputs[0, 5:8], inputs[1, 6:9], inputs[2, 5:8]]), [0, 1, 2], [5, 6, 5])

    close(first, whole[[2, 0], 3:5])
    close(second, torch.stack([whole[0, 5:8], whole[1, 6:9], whole[2, 5:8]]))


@torch.no_grad()
def test_room_may_grow_between_steps(language_model):
    inputs = embedded(2, 6)
    steps = CachedLanguageModel(language_model)
    steps.reserve(1, 4)

    steps.step(inputs[:1, :4], [0], [0])
    steps.reserve(2, 6)
    steps.step(inputs[1:, :4], [1], [0])
    states = steps.step(inputs[:, 4:], [0, 1], [4, 4])

    assert steps.num_positions == 6
    close(states, language_model.states(inputs, use_cache=False)[:, 4:])


@torch.no_grad()
def test_a_copied_row_goes_on_as_the_one_it_was_copied_from(language_model):
    inputs = embedded(1, 7)
    steps = CachedLanguageModel(language_model)
    steps.reserve(4, 7)
    steps.step(inputs[:, :5], [1], [0])

    steps.copy(1, [3, 0], 5)
    states = steps.step(inputs[:, 5:].expand(3, -1, -1), [0, 1, 3], [5, 5, 5])

    close(states, language_model.states(inputs, use_cache=False)[:, 5:].expand(3, -1, -1))


@torch.no_grad()
def test_steps_in_bfloat16_stay_as_near_to_float32_as_transformers_does(language_model):
    inputs = embedded(32, 16).bfloat16()
    half = copy.deepcopy(language_model).bfloat16()
    exact = copy.deepcopy(half).float().states(inputs.float(), use_cache=False)
    steps = CachedLanguageModel(half)
    steps.reserve(32, 16)

    stepped = steps.step(inputs, range(32), [0] * 32).float()

    passed = half.states(inputs, use_cache=False).float()
    assert (stepped - exact).norm() < (passed - exact).norm()
