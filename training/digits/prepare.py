"""The prepared data: scenes rendered from real scans, written in the layouts that published data sets have.

Pairs of digit and colour kept for testing appear in no training file, neither as pictures nor in words; pairs
kept for tuning appear in the validation files only.
"""

import copy
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from training.digits import instructions
from training.digits.instructions import Turn
from training.digits.scans import load_scans
from training.digits.scenes import BACKGROUNDS, COLORS, TUNING_PAIRS, UNSEEN_PAIRS, Scene, render, split_scans
from training.params import PrepareParams

SHARD_SIZE = 5000
# Questions about one scene, and how often is-there-a-digit is put among the five other kinds to choose from.
# Comparing what is asked for with what is there is learned late, from too few such questions never, and from
# many about one scene by luck: the earlier ones name what it does not have.
TURNS, EXISTS = 4, 2
TEXT_TURNS, TEXT_EXISTS, TEXT_SAYS = 2, 8, 1
DRAWING_SHARES = {"draw": 0.5, "draw_and_describe": 0.3, "draw_two": 0.1, "recolor": 0.1}
POPE_SETTINGS = ("random", "popular", "adversarial")
NUM_POPULAR = 3

Record = dict[str, Any]


class SceneRenderer:
    """Renders scenes of one split; every record has a random stream of its own.

    Negatives of is-there-a-digit questions, after POPE: `random` any other digit; `popular` one of the most
    frequent digits of the training scans; `adversarial` the digit whose average training scan looks most
    alike.
    """

    def __init__(self, data_dir: Path, split: str, seed: int, augment: float) -> None:
        self.scans, self.labels = load_scans(data_dir)
        splits = split_scans(self.labels)
        self.members, self.seed, self.augment = splits[split], seed, augment
        all_pairs = {(digit, color) for digit in range(10) for color in COLORS}
        allowed = {"train": all_pairs - UNSEEN_PAIRS - TUNING_PAIRS, "validation": all_pairs - UNSEEN_PAIRS}
        self.pairs = allowed.get(split, all_pairs)
        train = self.labels[splits["train"]]
        counts = np.bincount(train, minlength=10)
        self.popular = [int(digit) for digit in np.argsort(-counts, kind="stable")[: NUM_POPULAR + 1]]
        means = np.stack([self.scans[splits["train"]][train == digit].mean(0).ravel() for digit in range(10)])
        distances = np.linalg.norm(means[:, None] - means[None], axis=-1) + np.eye(10) * 1e9
        self.alike = distances.argmin(1)

    def rng(self, kind: str, index: int) -> np.random.Generator:
        """The random stream of one record."""
        return np.random.default_rng([self.seed, *kind.encode(), index])

    def scene(self, rng: np.random.Generator, scan: int | None = None) -> Scene:
        """A random scene of this split, of a given scan if one is named."""
        scan = int(rng.choice(self.members)) if scan is None else scan
        digit = int(self.labels[scan])
        colors = [color for color in COLORS if (digit, color) in self.pairs]
        return Scene(digit, instructions.pick(colors, rng), instructions.pick(list(BACKGROUNDS), rng), scan)

    def png(self, scene: Scene, rng: np.random.Generator) -> bytes:
        """The scene as PNG bytes."""
        buffer = io.BytesIO()
        render(self.scans[scene.scan], scene, rng, self.augment).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def absent_digit(self, setting: str, scene: Scene, rng: np.random.Generator) -> int:
        """A digit that is not in the scene, chosen as the POPE setting says."""
        if setting == "adversarial":
            return int(self.alike[scene.digit])
        pool = self.popular if setting == "popular" else range(10)
        return int(rng.choice([digit for digit in pool if digit != scene.digit]))

    def exists(self, scene: Scene, rng: np.random.Generator) -> Turn:
        """Is there ...? Yes and no are equally likely; sometimes the colour is asked for."""
        is_yes = rng.random() < 0.5
        if rng.random() < 0.25:
            others = [color for color in COLORS if color != scene.color]
            color = scene.color if is_yes else instructions.pick(others, rng)
            return instructions.ask_color_exists(color, scene)
        setting = instructions.pick(POPE_SETTINGS, rng)
        digit = scene.digit if is_yes else self.absent_digit(setting, scene, rng)
        return instructions.ask_digit_exists(digit, scene)

    def turns(self, scene: Scene, rng: np.random.Generator, count: int, num_exists: int) -> list[Turn]:
        """Several questions about one scene."""
        families = rng.permutation([*instructions.QUESTIONS, *["exists"] * num_exists])[:count]
        return [
            self.exists(scene, rng) if family == "exists" else instructions.ask(str(family), scene, rng)
            for family in families
        ]


def prepare(
    params: PrepareParams, seed: int, data_dir: Path, out: Path, progress: Callable[[str], None]
) -> Record:
    """Write every prepared file below `out`; the same parameters give the same bytes. Returns the summary."""
    train = SceneRenderer(data_dir, "train", seed, params.augment)
    drawn = SceneRenderer(data_dir, "train", seed, params.augment_drawn)
    validation, test = (
        SceneRenderer(data_dir, "validation", seed, 0.0),
        SceneRenderer(data_dir, "test", seed, 0.0),
    )
    plan: list[tuple[str, Callable[[], int]]] = [
        ("scenes/train", lambda: write_shards(train, out / "scenes", "train", params.scenes)),
        ("scenes/drawn", lambda: write_shards(drawn, out / "scenes", "drawn", params.scenes_drawn)),
        ("scenes/validation", lambda: write_shards(validation, out / "scenes", "validation", 600)),
        (
            "understanding/train",
            lambda: _write_json(out, "understanding", "train", understanding(train, params)),
        ),
        (
            "understanding/validation",
            lambda: _write_json(out, "understanding", "validation", probes(validation)),
        ),
        ("understanding/test", lambda: _write_json(out, "understanding", "test", probes(test))),
        ("drawing/train", lambda: _write_json(out, "drawing", "train", drawings(drawn, params.drawing))),
        (
            "drawing/validation",
            lambda: _write_json(out, "drawing", "validation", wishes(validation, params.validation)),
        ),
        ("drawing/test", lambda: _write_json(out, "drawing", "test", wishes(test, params.test))),
        ("text/train", lambda: _write_json(out, "text", "train", texts(train, params.text))),
    ]
    summary = {}
    for name, write in plan:
        progress(name)
        summary[name] = write()
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def write_shards(renderer: SceneRenderer, folder: Path, split: str, count: int) -> int:
    """Tar shards of pictures with their attributes, for the backbones."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, count, SHARD_SIZE)):
        with tarfile.open(folder / f"{split}-{shard:05d}.tar", "w") as tar:
            for index in range(first, min(first + SHARD_SIZE, count)):
                rng = renderer.rng(f"{split}-scene", index)
                scene = renderer.scene(rng)
                facts = {**vars(scene), "caption": scene.caption}
                _add(tar, f"{index:06d}.png", renderer.png(scene, rng))
                _add(tar, f"{index:06d}.json", json.dumps(facts).encode())
    return count


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _write_json(out: Path, kind: str, split: str, records: Iterator[tuple[Record, dict[str, bytes]]]) -> int:
    """A JSON list, and the pictures that its records name."""
    folder = out / kind
    (folder / "images").mkdir(parents=True, exist_ok=True)
    kept = []
    for record, pictures in records:
        kept.append(record)
        for name, content in pictures.items():
            (folder / name).write_bytes(content)
    (folder / f"{split}.json").write_text(json.dumps(kept) + "\n")
    return len(kept)


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


def understanding(
    renderer: SceneRenderer, params: PrepareParams
) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """Pictures with several questions each, LLaVA's way."""
    for index in range(params.understanding):
        rng = renderer.rng("understanding", index)
        scene = renderer.scene(rng)
        name = f"images/train-{index:05d}.png"
        turns = renderer.turns(scene, rng, TURNS, EXISTS)
        yield _llava(f"train-{index:05d}", name, turns, dict(vars(scene))), {name: renderer.png(scene, rng)}


def probes(renderer: SceneRenderer) -> Iterator[tuple[Record, dict[str, bytes]]]:
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


def drawings(renderer: SceneRenderer, count: int) -> Iterator[tuple[Record, dict[str, bytes]]]:
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


def wishes(renderer: SceneRenderer, count: int) -> Iterator[tuple[Record, dict[str, bytes]]]:
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


def texts(renderer: SceneRenderer, count: int) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """Questions about a scene told in words, for the language model before it sees anything."""
    for index in range(count):
        rng = renderer.rng("text", index)
        scene = renderer.scene(rng)
        turns = renderer.turns(scene, rng, TEXT_TURNS, TEXT_EXISTS)
        told = instructions.TEXT_CONTEXT.format(caption=scene.caption)
        turns[0] = Turn(turns[0].family, f"{told} {turns[0].question}", turns[0].answer)
        turns += [instructions.say(renderer.pairs, rng) for _ in range(TEXT_SAYS)]
        yield _sharegpt(f"text-{index:05d}", turns, [], dict(vars(scene))), {}
