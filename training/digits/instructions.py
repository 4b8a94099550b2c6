"""What users say and what the model should answer: every sentence of the data, one home for each."""

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
TEXT_CONTEXT = "The image shows {caption}."
SAY = "Only say it: {short}."
# How POPE chooses the object that is not there (arXiv:2305.10355).
POPE_SETTINGS = ("random", "popular", "adversarial")
# What can be said and is never drawn.
OTHER_COLORS = ("amber", "beige", "brown", "golden", "indigo", "maroon", "olive", "silver", "tan", "violet")
OTHER_THINGS = ("apple", "bird", "boat", "flower", "horse", "house", "letter", "lion", "star", "tree")


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `family` says what is asked."""

    family: str
    question: str
    answer: str


def short(scene: Scene) -> str:
    """Such as `a red seven on white`."""
    return _short(scene.color, DIGITS[scene.digit], scene.background)


def _short(color: str, thing: str, background: str) -> str:
    return f"{article(color)} {color} {thing} on {background}"


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of several ways to say it."""
    return options[int(rng.integers(len(options)))]


def ask(family: str, scene: Scene, rng: np.random.Generator) -> Turn:
    """A question of one family about a scene, with its answer."""
    answers = {
        "digit": DIGITS[scene.digit].capitalize(),
        "color": scene.color.capitalize(),
        "background": scene.background.capitalize(),
        "parity": ("Even", "Odd")[scene.digit % 2],
        "caption": scene.caption[0].upper() + scene.caption[1:],
    }
    return Turn(family, pick(QUESTIONS[family], rng), answers[family] + ".")


def ask_digit_exists(digit: int, scene: Scene) -> Turn:
    """Whether a digit is in the image."""
    question = f"Is there {article(DIGITS[digit])} {DIGITS[digit]} in the image?"
    return Turn("exists", question, "Yes." if digit == scene.digit else "No.")


def ask_color_exists(color: str, scene: Scene) -> Turn:
    """Whether a digit of this colour is in the image."""
    question = f"Is there {article(color)} {color} digit in the image?"
    return Turn("exists", question, "Yes." if color == scene.color else "No.")


def say(pairs: Collection[tuple[int, str]], rng: np.random.Generator) -> Turn:
    """What the reply to a wish begins with, in words alone: any thing in any colour, but of digits in colours
    of pictures only `pairs`.

    From pictures alone the language model learns which pairs there are, and names those when asked for
    others.
    """
    background = pick([*BACKGROUNDS, *OTHER_COLORS], rng)
    color = pick([*COLORS, *OTHER_COLORS], rng)
    digits = [DIGITS[digit] for digit in range(10) if color not in COLORS or (digit, color) in pairs]
    thing = pick([*digits, *OTHER_THINGS], rng)
    question = SAY.format(short=_short(color, thing, background))
    return Turn("say", question, _opening(caption_of(color, thing, background)))


def _opening(caption: str) -> str:
    return f"Here is {caption}."


def _reply(scene: Scene) -> str:
    return f"{_opening(scene.caption)} <image_gen>"


def draw(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request for a picture; the reply names what it shows, then shows it."""
    wish = pick(DRAW, rng).format(short=short(scene), caption=scene.caption)
    return Turn("draw", wish, _reply(scene))


def draw_and_describe(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request for a picture and words about it; the words follow the picture."""
    wish = pick(DRAW_AND_DESCRIBE, rng).format(short=short(scene), caption=scene.caption)
    return Turn("draw_and_describe", wish, f"{_reply(scene)} {description(scene)}")


def description(scene: Scene) -> str:
    """The sentence that follows a picture that was to be described."""
    return f"The picture shows {scene.caption}."


def draw_two(first: Scene, second: Scene, rng: np.random.Generator) -> Turn:
    """A request for two pictures in one reply."""
    wish = pick(DRAW_TWO, rng).format(first=short(first), second=short(second))
    return Turn("draw_two", wish, f"{_reply(first)} {_reply(second)}")


def recolor(scene: Scene, rng: np.random.Generator) -> Turn:
    """A request to draw the digit of an input image in other colours; `scene` is the target."""
    wish = pick(RECOLOR, rng).format(color=scene.color, background=scene.background)
    return Turn("recolor", f"<image>\n{wish}", _reply(scene))


def sample_prompts() -> list[str]:
    """A drawing request for every digit, through colours and backgrounds in turn; the same each time."""
    colors, grounds = list(COLORS), list(BACKGROUNDS)
    return [
        f"Draw {article(color)} {color} {name} on {ground}."
        for name, color, ground in (
            (name, colors[digit % len(colors)], grounds[digit % len(grounds)])
            for digit, name in enumerate(DIGITS)
        )
    ]
