"""Laws of sampling: parameters without sense are refused, and choices follow them."""

from dataclasses import fields

import pytest
import torch

from model.errors import UserError
from model.generation.sampling import SamplingParams, SamplingRule, keep_top_k_top_p, sample


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_temperature", -1.0),
        ("image_temperature", float("nan")),
        ("guidance", float("inf")),
        ("image_top_p", 0.0),
        ("text_top_p", 1.5),
        ("fine_top_p", 0.0),
        ("image_top_k", -1),
        ("fine_guidance", -0.1),
        ("cooling", 1.2),
        ("max_new_tokens", 0),
        ("seed", -5),
        ("guidance_mode", "magic"),
        ("smoothing", "no"),
        ("text_top_k", 2.5),
        ("seed", 1.5),
        ("max_images", True),
        ("guidance", None),
        ("text_temperature", "0"),
    ],
)
def test_bad_sampling_parameters_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in fields(SamplingParams)])
@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 10**5000, 1e300, float("nan"), float("inf")],
    ids=["401-digits", "minus-401-digits", "5001-digits", "1e300", "nan", "inf"],
)
def test_every_field_refuses_numbers_without_sense(field, value):
    with pytest.raises(UserError, match=field) as refused:
        SamplingParams(**{field: value})

    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-7])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature):
    logits = torch.randn(1, 50, 9, generator=torch.Generator().manual_seed(0)).round()

    chosen = sample(logits, [SamplingRule(temperature, 0, 1.0)], [torch.Generator()])

    assert torch.equal(chosen, logits.argmax(-1))


def test_likely_choices_are_kept_and_the_best_always_stays():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])

    assert keep_top_k_top_p(logits, 2, 1.0).isfinite().tolist() == [[True, True, False, False]]
    assert keep_top_k_top_p(logits, 0, 1e-6).isfinite().tolist() == [[True, False, False, False]]
    assert keep_top_k_top_p(logits, 0, 1.0).isfinite().all()


def test_fine_scales_have_a_top_p_of_their_own():
    params = SamplingParams(image_top_p=0.7, fine_top_p=0.6)

    assert [params.image_rule(k / 3).top_p for k in range(4)] == [0.7, 0.7, 0.6, 0.6]


def test_cooling_leaves_the_coarsest_scale_and_takes_its_share_of_the_finest():
    def temperatures(cooling):
        params = SamplingParams(image_temperature=2.0, cooling=cooling)
        return [params.image_rule(progress).temperature for progress in (0.0, 0.5, 1.0)]

    assert temperatures(0.75) == [2.0, 1.625, 0.5]
    assert temperatures(0.0) == [2.0, 2.0, 2.0]
    assert temperatures(1.0)[2] == 0.0


def test_choices_follow_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(20_000, 1)

    [chosen] = sample(logits[None], [SamplingRule(1.0, 0, 1.0)], [torch.Generator().manual_seed(0)])

    shares = torch.bincount(chosen, minlength=3) / len(chosen)
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.015, rtol=0)


def test_requests_choose_together_as_they_do_alone():
    logits = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0))
    rules = [
        SamplingRule(1.0, 8, 0.9),
        SamplingRule(0.0, 0, 1.0),
        SamplingRule(1.0, 8, 0.9),
        SamplingRule(0.5, 0, 1.0),
        SamplingRule(2.0, 3, 0.5),
    ]

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(5)]

    together = sample(logits, rules, generators())

    alone = [sample(*one)[0] for one in zip(logits[:, None], zip(rules), zip(generators()), strict=True)]
    assert torch.equal(together, torch.stack(alone))
