"""Conversations about scenes as records of LLaVA's and ShareGPT's layouts, with the images that they name.

Held-out pairs of digit and colour appear in no training record, neither in images nor in words; those of the
validation split appear there and in the test split, those of the test split there alone.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from training.digits import instructions
from training.digits.instructions import POPE_SETTINGS, Turn
from training.digits.scene_sampler import SceneSampler
from training.digits.scenes import BACKGROUNDS, COLORS, NO_SCAN, TEST_PAIRS, VALIDATION_PAIRS, Scene

# Turns of a conversation, and how often yes-or-no questions are among the families that these are drawn from.
# To compare a question with an image is learned late, and not at all from too few such questions. Many about
# one scene teach little, as earlier answers give later ones away.
NUM_TURNS, NUM_EXISTS = 4, 2
NUM_TEXT_TURNS, NUM_TEXT_EXISTS, NUM_TEXT_ONLY_REQUESTS = 2, 8, 1
DRAWING_SHARES = {"draw": 0.5, "draw_and_describe": 0.3, "draw_two": 0.1, "recolor": 0.1}

Record = dict[str, Any]
# A record and its image files, {name: PNG}; files that came with an earlier record are not repeated.
RecordWithImages = tuple[Record, dict[str, bytes]]


def _llava_record(identity: str, image: str, turns: list[Turn], meta: Record) -> Record:
    values = [text for turn in turns for text in (turn.question, turn.answer)]
    values[0] = "<image>\n" + values[0]
    conversations = [
        {"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)
    ]
    return {"id": identity, "image": image, "conversations": conversations, "meta": meta}


def _sharegpt_record(identity: str, turns: list[Turn], images: list[str], meta: Record) -> Record:
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
    return {"family": turn.family, **vars(scene), "unseen": scene.pair in TEST_PAIRS | VALIDATION_PAIRS}


def understanding_records(sampler: SceneSampler, count: int) -> Iterator[RecordWithImages]:
    """Images with several questions each, in LLaVA's layout."""
    for index in range(count):
        rng = sampler.rng("understanding", index)
        scene = sampler.sample_scene(rng)
        name = f"images/train-{index:05d}.png"
        turns = sampler.sample_turns(scene, rng, NUM_TURNS, NUM_EXISTS)
        record = _llava_record(f"train-{index:05d}", name, turns, dict(vars(scene)))
        yield record, {name: sampler.render_png(scene, rng)}


def question_records(sampler: SceneSampler) -> Iterator[RecordWithImages]:
    """Questions for evaluation, one each record, in LLaVA's layout.

    About every scan of the split: one question of every family, and for each POPE setting one with the answer
    yes and one with the answer no.
    """
    for scan in sampler.scan_indices:
        rng = sampler.rng("probe", int(scan))
        scene = sampler.sample_scene(rng, int(scan))
        name = f"images/scan-{int(scan):05d}.png"
        images = {name: sampler.render_png(scene, rng)}
        questions = [
            (instructions.question_turn(family, scene, rng), {}) for family in instructions.QUESTIONS
        ]
        for setting in POPE_SETTINGS:
            absent = sampler.sample_absent_digit(setting, scene, rng)
            for digit in (scene.digit, absent):
                questions.append((instructions.digit_exists_turn(digit, scene), {"setting": setting}))
        for number, (turn, pope) in enumerate(questions):
            yield _llava_record(f"{int(scan)}-{number}", name, [turn], {**_meta(turn, scene), **pope}), images
            images = {}


def num_question_records(sampler: SceneSampler) -> int:
    """How many records `question_records` makes."""
    return len(sampler.scan_indices) * (len(instructions.QUESTIONS) + 2 * len(POPE_SETTINGS))


def drawing_records(sampler: SceneSampler, count: int) -> Iterator[RecordWithImages]:
    """Drawing requests with the drawings as targets, in ShareGPT's layout."""
    families, shares = list(DRAWING_SHARES), list(DRAWING_SHARES.values())
    for index in range(count):
        rng = sampler.rng("drawing", index)
        family = str(rng.choice(families, p=shares))
        scene = sampler.sample_scene(rng)
        turn, scenes = _drawing_turn(sampler, family, scene, rng)
        names = [f"images/train-{index:05d}-{number}.png" for number in range(len(scenes))]
        # To be the same digit in other colours, both images are rendered from the same random numbers.
        image_rngs = [copy.deepcopy(rng) if family == "recolor" else rng for _ in scenes]
        images = {
            name: sampler.render_png(shown, image_rng)
            for name, shown, image_rng in zip(names, scenes, image_rngs, strict=True)
        }
        yield _sharegpt_record(f"train-{index:05d}", [turn], names, _meta(turn, scene)), images


def _drawing_turn(
    sampler: SceneSampler, family: str, scene: Scene, rng: np.random.Generator
) -> tuple[Turn, list[Scene]]:
    """A turn of one family, and the scenes of its images, those of the input first."""
    if family == "draw":
        return instructions.draw_turn(scene, rng), [scene]
    if family == "draw_and_describe":
        return instructions.draw_and_describe_turn(scene, rng), [scene]
    if family == "draw_two":
        second = sampler.sample_scene(rng)
        return instructions.draw_two_turn(scene, second, rng), [scene, second]
    return instructions.recolor_turn(scene, rng), [sampler.sample_scene(rng, scene.scan), scene]


def drawing_prompt_records(sampler: SceneSampler, count: int) -> Iterator[RecordWithImages]:
    """Drawing requests for evaluation, without drawings: all combinations of digit, colour and background.

    They come in a fixed random order, so that the first few hold every digit and their share of held-out
    pairs, and start again after the last.
    """
    combinations = [
        (digit, color, background) for digit in range(10) for color in COLORS for background in BACKGROUNDS
    ]
    combinations = [combination for combination in combinations if combination[:2] in sampler.pairs]
    order = sampler.rng("wishes", 0).permutation(len(combinations))
    for index in range(count):
        rng = sampler.rng("wish", index)
        digit, color, background = combinations[order[index % len(combinations)]]
        scene = Scene(digit, color, background, NO_SCAN)
        # Both families in turn, and the other one in the next pass: every combination gets both.
        is_described = (index + index // len(combinations)) % 2 == 1
        make_turn = instructions.draw_and_describe_turn if is_described else instructions.draw_turn
        turn = make_turn(scene, rng)
        message = {"role": "user", "content": turn.question}
        meta = {**_meta(turn, scene), "answer": turn.answer}
        yield {"id": f"wish-{index:05d}", "messages": [message], "images": [], "meta": meta}, {}


def text_records(sampler: SceneSampler, count: int) -> Iterator[RecordWithImages]:
    """Conversations without images, in ShareGPT's layout: a caption takes the place of the image.

    The language model learns from them what questions ask before it sees an image.
    """
    for index in range(count):
        rng = sampler.rng("text", index)
        scene = sampler.sample_scene(rng)
        turns = sampler.sample_turns(scene, rng, NUM_TEXT_TURNS, NUM_TEXT_EXISTS)
        context = instructions.TEXT_CONTEXT.format(caption=scene.caption)
        turns[0] = Turn(turns[0].family, f"{context} {turns[0].question}", turns[0].answer)
        turns += [instructions.text_only_turn(sampler.pairs, rng) for _ in range(NUM_TEXT_ONLY_REQUESTS)]
        yield _sharegpt_record(f"text-{index:05d}", turns, [], dict(vars(scene))), {}
