"""Laws of the gates: both abilities hold their ground, from the best there ever was, and why is told."""

import copy
import dataclasses
import json
import math

import pytest

from tests.training.registry.candidates import MARGINS, METRICS, changed
from training.registry.gates import decide


def failed(candidate, champion, margins=MARGINS, floors=None):
    champions = [] if champion is None else champion if isinstance(champion, list) else [champion]
    return [gate.name for gate in decide(candidate, champions, margins, floors or {}).failed]


def test_an_equal_model_passes():
    assert decide(METRICS, [METRICS], MARGINS, {}).is_yes


@pytest.mark.parametrize(
    ("name", "just_enough", "too_little"),
    [
        ("draw.all_right", 0.96, 0.9599),
        ("draw.unseen", 0.88, 0.8799),
        ("draw.frechet_ratio", 2.0, 2.0001),
        ("vqa.digit", 0.97, 0.9699),
        ("pope.adversarial", 0.94, 0.9399),
    ],
)
def test_a_loss_up_to_the_margin_passes_and_beyond_it_fails(name, just_enough, too_little):
    assert failed(changed(name, just_enough), METRICS) == []
    assert failed(changed(name, too_little), METRICS) == [name]


@pytest.mark.parametrize(("name", "step"), [("vqa.digit", -0.01), ("draw.frechet_ratio", 0.2)])
def test_a_line_of_champions_cannot_lose_a_margin_each_time(name, step):
    group, _, key = name.partition(".")
    first = METRICS[group][key]
    line = [METRICS, changed(name, first + step)]

    assert failed(changed(name, first + step), line) == []
    assert failed(changed(name, first + 2 * step), line) == [name]
    assert failed(changed(name, first + 2 * step), line[::-1]) == [name]


def test_the_best_champion_is_another_one_for_each_metric():
    line = [changed("vqa.digit", 1.0), changed("draw.unseen", 0.95)]

    assert failed(changed("vqa.digit", 0.985), line) == ["draw.unseen", "vqa.digit"]


def test_a_gain_in_drawing_does_not_pay_for_a_loss_in_understanding_nor_the_other_way():
    better_drawing = changed("draw.all_right", 1.0) | {"vqa": {"digit": 0.9}}
    better_understanding = changed("vqa.digit", 1.0) | {"draw": METRICS["draw"] | {"unseen": 0.5}}

    assert failed(better_drawing, METRICS) == ["vqa.digit"]
    assert failed(better_understanding, METRICS) == ["draw.unseen"]


def test_a_failed_gate_says_by_how_much():
    [gate] = decide(changed("draw.unseen", 0.80), [METRICS], MARGINS, {}).failed
    [other] = decide(changed("draw.frechet_ratio", 3.0), [METRICS], MARGINS, {}).failed

    assert math.isclose(gate.short_by, 0.08)
    assert (
        str(gate) == "draw.unseen: failed by 0.0800: 0.8000, must be at least 0.8800 (best champion 0.9000)"
    )
    assert str(other) == (
        "draw.frechet_ratio: failed by 1.0000: 3.0000, must be at most 2.0000 (best champion 1.8000)"
    )


def test_the_first_version_must_reach_the_floors():
    floors = {"draw": {"all_right": 0.98, "frechet_ratio": 1.5}, "tokenizer": {"psnr": 27}}

    assert failed(METRICS, None, MARGINS, floors) == ["draw.all_right", "draw.frechet_ratio"]
    assert failed(METRICS, None, MARGINS, {"draw": {"all_right": 0.97, "frechet_ratio": 1.8}}) == []


def test_a_gate_without_a_limit_says_so():
    gates = decide(METRICS, [], MARGINS, {}).gates

    assert str(gates[0]) == "draw.all_right: passed: 0.9700, which has no limit yet"
    assert not [gate for gate in gates if "inf" in str(gate)]


def test_margins_cannot_carry_a_line_of_champions_below_the_floor():
    worse, champion = changed("vqa.digit", 0.955), changed("vqa.digit", 0.96)

    assert failed(worse, champion, MARGINS, {"vqa": {"digit": 0.96}}) == ["vqa.digit"]


def test_a_value_that_is_no_number_never_passes():
    assert failed(changed("vqa.digit", math.nan), METRICS) == ["vqa.digit"]
    assert failed(changed("vqa.digit", math.nan), None) == ["vqa.digit"]
    assert failed(changed("draw.frechet_ratio", -math.inf), METRICS) == ["draw.frechet_ratio"]


@pytest.mark.parametrize("champions", [[], [METRICS], [changed("vqa.digit", math.nan)]])
@pytest.mark.parametrize("value", [0.5, 1.0, math.nan, math.inf])
def test_every_decision_can_be_written_as_json(champions, value):
    for gate in decide(changed("vqa.digit", value), champions, MARGINS, {}).gates:
        json.dumps(dataclasses.asdict(gate) | {"short_by": gate.short_by}, allow_nan=False)


def test_a_champion_without_a_gated_value_keeps_the_gate_shut():
    old = copy.deepcopy(METRICS)
    del old["draw"]["unseen"]

    [gate] = decide(METRICS, [METRICS, old], MARGINS, {}).failed

    assert str(gate) == "draw.unseen: failed: the champion has no figure to compare 0.9000 with"
    assert failed(METRICS, [old, METRICS]) == []


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"vqa": {"digit": 0.01}}, "no metric of drawing"),
        ({"draw": {"all_right": 0.01}}, "no metric of understanding"),
        (MARGINS | {"vqa": {"digit": -0.1}}, r"margin of vqa\.digit must be .* got -0\.1"),
        (MARGINS | {"vqa": {"digit": math.nan}}, r"margin of vqa\.digit must be"),
        (MARGINS | {"vqa": {"shape": 0.1}}, r"no vqa\.shape"),
    ],
)
def test_margins_that_gate_too_little_or_nonsense_are_refused(margins, message):
    with pytest.raises(ValueError, match=message):
        decide(METRICS, [METRICS], margins, {})
