"""Prompt and answer templates: every sentence of the data set, as turns about a scene."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from training.data.class_prompts import article
from training.digits.scenes import BACKGROUNDS, COLORS, DIGITS, Scene, caption_of

QUESTIONS = {
    "digit": ("Which digit is this?", "What number do you see?"),
    "color": ("What color is the digit?", "Which color does the digit have?"),
    "background": ("What color is the background?", "What is behind the digit?"),
    "parity": ("Is the digit even or odd?",),
    "caption": ("Describe the image.", "What does the image show?"),
}
DRAW = ("Draw {short}.", "Paint {caption}.", "Please draw {short}.")
DRAW_AND_DESCRIBE = ("Draw {short} and describe it.", "Paint {caption} and describe the picture.")
DRAW_TWO = ("Draw {first} and {second}.",)
RECOLOR = ("Draw this digit in {color} on {background}.", "Make this digit {color} on {background}.")
# In place of the image in a conversation without one.
TEXT_CONTEXT = "The image shows {caption}."
TEXT_ONLY = "Only say it: {short}."
# How POPE chooses an object that is not in the image (arXiv:2305.10355).
POPE_SETTINGS = ("random", "popular", "adversarial")
# Colours and things of text-only requests that no image of the data set shows.
TEXT_ONLY_COLORS = (
    "amber",
    "beige",
    "brown",
    "golden",
    "indigo",
    "maroon",
    "olive",
    "silver",
    "tan",
    "violet",
)
TEXT_ONLY_THINGS = ("apple", "bird", "boat", "flower", "horse", "house", "letter", "lion", "star", "tree")


@dataclass(frozen=True)
class Turn:
    """One question or request with its answer; `family` is the kind of it, such as `digit` or `draw`."""

    family: str
    question: str
    answer: str


def short_caption(scene: Scene) -> str:
    """Such as `a red seven on white`."""
    return _short_caption(scene.color, DIGITS[scene.digit], scene.background)


def _short_caption(color: str, thing: str, background: str) -> str:
    return f"{article(color)} {color} {thing} on {background}"


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, at random."""
    return options[int(rng.integers(len(options)))]


def question_turn(family: str, scene: Scene, rng: np.random.Generator) -> Turn:
    """A question about the image of a scene, of a family of QUESTIONS."""
    answers = {
        "digit": DIGITS[scene.digit].capitalize(),
        "color": scene.color.capitalize(),
        "background": scene.background.capitalize(),
        "parity": ("Even", "Odd")[scene.digit % 2],
        "caption": scene.caption[0].upper() + scene.caption[1:],
    }
    return Turn(family, pick(QUESTIONS[family], rng), answers[family] + ".")


def digit_exists_turn(digit: int, scene: Scene) -> Turn:
    """The question whether a digit is in the image of a scene; yes or no."""
    question = f"Is there {article(DIGITS[digit])} {DIGITS[digit]} in the image?"
    return Turn("exists", question, "Yes." if digit == scene.digit else "No.")


def color_exists_turn(color: str, scene: Scene) -> Turn:
    """The question whether a digit of this colour is in the image of a scene; yes or no."""
    question = f"Is there {article(color)} {color} digit in the image?"
    return Turn("exists", question, "Yes." if color == scene.color else "No.")


def text_only_turn(pairs: Collection[tuple[int, str]], rng: np.random.Generator) -> Turn:
    """A request to write the first sentence of a drawing reply, without a drawing.

    It names any thing in any colour, so that replies name what was requested. From drawings alone, the
    language model learns which pairs of digit and colour occur, and names one of those for any other.

    Args:
        pairs: Digits and colours that may be named together; colours that no image shows go with any digit.
    """
    background = pick([*BACKGROUNDS, *TEXT_ONLY_COLORS], rng)
    color = pick([*COLORS, *TEXT_ONLY_COLORS], rng)
    digits = [DIGITS[digit] for digit in range(10) if color not in COLORS or (digit, color) in pairs]
    thing = pick([*digits, *TEXT_ONLY_THINGS], rng)
    question = TEXT_ONLY.format(short=_short_caption(color, thing, background))
    return Turn("text_only", question, _reply_opening(caption_of(color, thing, background)))


def _reply_opening(caption: str) -> str:
    return f"Here is {caption}."


def _drawing_reply(scene: Scene) -> str:
    return f"{_reply_opening(scene.caption)} <image_gen>"


def draw_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request for a drawing; the reply names what it shows, then shows it."""
    request = pick(DRAW, rng).format(short=short_caption(scene), caption=scene.caption)
    return Turn("draw", request, _drawing_reply(scene))


def draw_and_describe_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request for a drawing and its description, which follows it."""
    request = pick(DRAW_AND_DESCRIBE, rng).format(short=short_caption(scene), caption=scene.caption)
    return Turn("draw_and_describe", request, f"{_drawing_reply(scene)} {description(scene)}")


def description(scene: Scene) -> str:
    """The sentence that follows a drawing where a description was requested."""
    return f"The picture shows {scene.caption}."


def draw_two_turn(first: Scene, second: Scene, rng: np.random.Generator) -> Turn:
    """A request for two drawings in one reply."""
    request = pick(DRAW_TWO, rng).format(first=short_caption(first), second=short_caption(second))
    return Turn("draw_two", request, f"{_drawing_reply(first)} {_drawing_reply(second)}")


def recolor_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request to draw the digit of an input image in the colours of `scene`."""
    request = pick(RECOLOR, rng).format(color=scene.color, background=scene.background)
    return Turn("recolor", f"<image>\n{request}", _drawing_reply(scene))


def sample_prompts() -> list[str]:
    """One fixed drawing request for each digit, with colours and backgrounds in turn."""
    colors, backgrounds = list(COLORS), list(BACKGROUNDS)
    return [
        f"Draw {article(color)} {color} {name} on {background}."
        for name, color, background in (
            (name, colors[digit % len(colors)], backgrounds[digit % len(backgrounds)])
            for digit, name in enumerate(DIGITS)
        )
    ]
