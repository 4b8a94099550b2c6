"""Laws of the figures: counted exactly, intervals that cover, nothing gained by saying nothing."""

import json

import pytest

from training.digits.scenes import Scene
from training.evaluation.judge import Verdict
from training.evaluation.metrics import (
    Answer,
    Drawing,
    Proportion,
    described_share,
    drawing_shares,
    pope_detail,
    proportion_of,
    question_shares,
    summary,
)

SCENE = Scene(7, "red", "white", -1)
RIGHT = Verdict(7, "red", "white")


def drawing(verdict=RIGHT, said="Here.", family="draw", unseen=False):
    return Drawing(family, SCENE, verdict, "Here.", said, unseen)


def exists(expected, said, setting="random"):
    return Answer("exists", setting, expected, said, False)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Known values of Wilson's score interval at 95 %.
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (97, 100, 0.91548, 0.98974), (1, 2, 0.09453, 0.90547)],
)
def test_intervals_are_wilsons(hits, count, low, high):
    assert Proportion(hits, count).interval == pytest.approx((low, high), abs=1e-5)


def test_nothing_counted_is_no_figure():
    share = proportion_of([])

    assert share.value is None
    assert share.interval == (0.0, 1.0)


def test_an_answer_is_right_only_word_by_word():
    answers = [
        Answer("digit", "", "Seven.", said, unseen)
        for said, unseen in [("Seven.", False), ("seven.", False), ("Seven. Seven.", True), ("Seven.", True)]
    ]

    shares = question_shares(answers)

    assert shares["digit"] == Proportion(2, 4)
    assert shares["unseen_digit"] == Proportion(1, 2)
    assert shares["color"] == Proportion(0, 0)


def test_pope_counts_yes_as_the_positive_answer():
    answers = [exists("Yes.", "Yes.")] * 3 + [exists("Yes.", "No.")] + [exists("No.", "Yes.")] * 2
    answers += [exists("No.", "No.")] * 2

    figures = pope_detail(answers)["random"]

    assert figures["accuracy"] == 5 / 8
    assert figures["precision"] == 3 / 5
    assert figures["recall"] == 3 / 4
    assert figures["f1"] == pytest.approx(2 * 3 / 5 * 3 / 4 / (3 / 5 + 3 / 4))
    assert figures["yes_rate"] == 5 / 8


def test_saying_yes_to_everything_is_seen_in_the_rate():
    figures = pope_detail([exists("Yes.", "Yes."), exists("No.", "Yes.")])["random"]

    assert figures["yes_rate"] == 1.0
    assert figures["f1"] == pytest.approx(2 / 3)


def test_neither_yes_nor_no_is_always_wrong():
    figures = pope_detail([exists("Yes.", "Perhaps."), exists("No.", "")])["random"]

    assert figures["accuracy"] == figures["f1"] == 0.0
    assert figures["neither"] == 2


def test_settings_are_counted_apart():
    detail = pope_detail([exists("Yes.", "Yes.", "random"), exists("Yes.", "No.", "popular")])

    assert detail["random"]["f1"] == 1.0
    assert detail["popular"]["f1"] == 0.0
    assert detail["adversarial"]["n"] == 0


def test_a_drawing_is_right_only_when_everything_is():
    drawings = [
        drawing(),
        drawing(Verdict(1, "red", "white"), unseen=True),
        drawing(Verdict(7, "blue", "white")),
        drawing(Verdict(7, "red", None)),
        drawing(Verdict(None, None, None), unseen=True),
        drawing(unseen=True),
    ]

    shares = drawing_shares(drawings)

    assert shares["all_right"] == Proportion(2, 6)
    assert (shares["digit"], shares["color"], shares["background"]) == (
        Proportion(4, 6),
        Proportion(4, 6),
        Proportion(4, 6),
    )
    assert shares["unseen"] == Proportion(1, 3)
    assert shares["seen"] == Proportion(1, 3)


def test_a_described_drawing_needs_the_right_picture_and_the_right_words():
    drawings = [
        drawing(family="draw_and_describe"),
        drawing(family="draw_and_describe", said="There."),
        drawing(Verdict(1, "red", "white"), family="draw_and_describe"),
        drawing(),
    ]

    assert described_share(drawings) == Proportion(1, 3)


def test_the_summary_has_every_promised_figure_and_is_plain_json():
    found = summary([exists("Yes.", "Yes.")], [drawing()])

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {"all_right", "digit", "color", "background", "unseen", "n", "n_unseen"} <= found["draw"].keys()
    assert {"digit", "color", "background", "exists", "parity", "caption", "n"} <= found["vqa"].keys()
    assert found["pope"] == {"random": 1.0, "popular": 0.0, "adversarial": 0.0}
    assert found["draw_and_describe"] is None
    assert found["intervals"]["draw"]["all_right"] == list(Proportion(1, 1).interval)
