"""Conversations about scenes as records of published layouts, with the pictures that they name.

Pairs of digit and colour kept for testing appear in no training record, neither as pictures nor in words;
pairs kept for tuning appear in validation records only.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from training.digits import instructions
from training.digits.instructions import POPE_SETTINGS, Turn
from training.digits.scene_renderer import SceneRenderer
from training.digits.scenes import BACKGROUNDS, COLORS, TUNING_PAIRS, UNSEEN_PAIRS, Scene
from training.params import PrepareParams

# Questions about one scene, and how often is-there-a-digit is put among the five other kinds to choose from.
# Comparing what is asked for with what is there is learned late, from too few such questions never, and from
# many about one scene by luck: the earlier ones name what it does not have.
TURNS, EXISTS = 4, 2
TEXT_TURNS, TEXT_EXISTS, TEXT_SAYS = 2, 8, 1
DRAWING_SHARES = {"draw": 0.5, "draw_and_describe": 0.3, "draw_two": 0.1, "recolor": 0.1}

Record = dict[str, Any]
# A record, and the content of every picture file that nobody wrote before.
Records = Iterator[tuple[Record, dict[str, bytes]]]


def _llava(identity: str, image: str, turns: list[Turn], meta: Record) -> Record:
    values = [text for turn in turns for text in (turn.question, turn.answer)]
    values[0] = "<image>\n" + values[0]
    conversations = [
        {"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)
    ]
    return {"id": identity, "image": image, "conversations": conversations, "meta": meta}


def _sharegpt(identity: str, turns: list[Turn], images: list[str], meta: Record) -> Record:
    messages = [
        message
        for turn in turns
        for message in (
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        )
    ]
    return {"id": identity, "messages": messages, "images": images, "meta": meta}


def _meta(turn: Turn, scene: Scene) -> Record:
    return {"family": turn.family, **vars(scene), "unseen": scene.pair in UNSEEN_PAIRS | TUNING_PAIRS}


def understanding(renderer: SceneRenderer, params: PrepareParams) -> Records:
    """Pictures with several questions each, LLaVA's way."""
    for index in range(params.understanding):
        rng = renderer.rng("understanding", index)
        scene = renderer.scene(rng)
        name = f"images/train-{index:05d}.png"
        turns = renderer.turns(scene, rng, TURNS, EXISTS)
        yield _llava(f"train-{index:05d}", name, turns, dict(vars(scene))), {name: renderer.png(scene, rng)}


def probes(renderer: SceneRenderer) -> Records:
    """Single questions about every scan of a split: all families, and POPE's yes and no in each setting."""
    for scan in renderer.members:
        rng = renderer.rng("probe", int(scan))
        scene = renderer.scene(rng, int(scan))
        name = f"images/scan-{int(scan):05d}.png"
        pictures = {name: renderer.png(scene, rng)}
        asked = [(instructions.ask(family, scene, rng), {}) for family in instructions.QUESTIONS]
        for setting in POPE_SETTINGS:
            absent = renderer.absent_digit(setting, scene, rng)
            for digit in (scene.digit, absent):
                asked.append((instructions.ask_digit_exists(digit, scene), {"setting": setting}))
        for number, (turn, more) in enumerate(asked):
            record = _llava(f"{int(scan)}-{number}", name, [turn], {**_meta(turn, scene), **more})
            yield record, pictures
            pictures = {}


def drawings(renderer: SceneRenderer, count: int) -> Records:
    """Requests to draw, with the pictures that answer them, ShareGPT's way."""
    families, shares = list(DRAWING_SHARES), list(DRAWING_SHARES.values())
    for index in range(count):
        rng = renderer.rng("drawing", index)
        family = str(rng.choice(families, p=shares))
        scene = renderer.scene(rng)
        stem = f"images/train-{index:05d}"
        turn, scenes = _drawing(renderer, family, scene, rng)
        names = [f"{stem}-{place}.png" for place in range(len(scenes))]
        # A digit in other colours is otherwise the same picture: drawn from a copy of the same stream.
        hands = [copy.deepcopy(rng) if family == "recolor" else rng for _ in scenes]
        shown = zip(names, scenes, hands, strict=True)
        pictures = {name: renderer.png(scene, hand) for name, scene, hand in shown}
        yield _sharegpt(f"train-{index:05d}", [turn], names, _meta(turn, scene)), pictures


def _drawing(
    renderer: SceneRenderer, family: str, scene: Scene, rng: np.random.Generator
) -> tuple[Turn, list[Scene]]:
    if family == "draw":
        return instructions.draw(scene, rng), [scene]
    if family == "draw_and_describe":
        return instructions.draw_and_describe(scene, rng), [scene]
    if family == "draw_two":
        second = renderer.scene(rng)
        return instructions.draw_two(scene, second, rng), [scene, second]
    return instructions.recolor(scene, rng), [renderer.scene(rng, scene.scan), scene]


def drawing_prompts(renderer: SceneRenderer, count: int) -> Records:
    """Prompts to be drawn and judged, every combination in turn, kept pairs as often as chance makes them."""
    combinations = [
        (digit, color, background) for digit in range(10) for color in COLORS for background in BACKGROUNDS
    ]
    combinations = [combination for combination in combinations if combination[:2] in renderer.pairs]
    # Mixed, so that any number of prompts holds every digit and its share of kept pairs.
    order = renderer.rng("wishes", 0).permutation(len(combinations))
    for index in range(count):
        rng = renderer.rng("wish", index)
        digit, color, background = combinations[order[index % len(combinations)]]
        scene = Scene(digit, color, background, -1)
        # In turn, and the other way round in the next pass: every combination gets both.
        family = ("draw", "draw_and_describe")[(index + index // len(combinations)) % 2]
        turn = (
            instructions.draw(scene, rng) if family == "draw" else instructions.draw_and_describe(scene, rng)
        )
        meta = {**_meta(Turn(family, turn.question, turn.answer), scene), "answer": turn.answer}
        message = {"role": "user", "content": turn.question}
        yield {"id": f"wish-{index:05d}", "messages": [message], "images": [], "meta": meta}, {}


def texts(renderer: SceneRenderer, count: int) -> Records:
    """Questions about a scene told in words, for the language model before it sees anything."""
    for index in range(count):
        rng = renderer.rng("text", index)
        scene = renderer.scene(rng)
        turns = renderer.turns(scene, rng, TEXT_TURNS, TEXT_EXISTS)
        told = instructions.TEXT_CONTEXT.format(caption=scene.caption)
        turns[0] = Turn(turns[0].family, f"{told} {turns[0].question}", turns[0].answer)
        turns += [instructions.say(renderer.pairs, rng) for _ in range(TEXT_SAYS)]
        yield _sharegpt(f"text-{index:05d}", turns, [], dict(vars(scene))), {}
