"""Puts held-out prompts to a model in batches; turns its replies into answers and drawings to be counted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from model.generation.generate import generate
from model.generation.sampling import SamplingParams
from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE, IMAGE_GEN
from model.vargpt import Vargpt
from training.data.samples import Sample
from training.digits.scenes import Scene
from training.evaluation.judge import Judge, Verdict
from training.evaluation.metrics import Answer, Drawing

# Stands in for a picture that was not drawn, so that distances over all requests count it.
NOTHING_DRAWN = Image.new("RGB", (1, 1), (130, 130, 130))

# Called with a part of an evaluation, how much of it is done, and how much there is; first as it begins.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelReply:
    """One sample and what the model replied: its words, and its pictures in their order."""

    sample: Sample
    words: str
    pictures: tuple[Image.Image, ...]

    @property
    def picture(self) -> Image.Image:
        """The picture of a reply that should hold one."""
        return self.pictures[0] if len(self.pictures) == 1 else NOTHING_DRAWN


def reply_to(
    model: Vargpt,
    processor: VargptProcessor,
    samples: Sequence[Sample],
    sampling: SamplingParams,
    batch: int,
    progress: Callable[[int], None],
) -> list[ModelReply]:
    """The model's replies to the prompts of these samples, each with a seed of its own.

    `progress` is called with how many are done.
    """
    replied = []
    for first in range(0, len(samples), batch):
        members = samples[first : first + batch]
        requests = [
            processor.request(conversation(sample), replace(sampling, seed=sampling.seed + index))
            for index, sample in enumerate(members, start=first)
        ]
        for sample, reply in zip(members, generate(model, requests), strict=True):
            pictures = [part for kind, part in processor.segments(reply) if kind == "image"]
            replied.append(ModelReply(sample, processor.text(reply), tuple(pictures)))
        progress(len(replied))
    return replied


def conversation(sample: Sample) -> list[dict[str, Any]]:
    """A sample's turns up to the last user's, pictures in their places, as the processor takes a prompt."""
    turns = list(sample.messages)
    if turns[-1].role == "assistant":
        turns.pop()
    pictures = (reference.open() for reference in sample.images)
    return [{"role": turn.role, "content": list(_parts(turn.content, pictures))} for turn in turns]


def _parts(content: str, pictures: Iterator[Image.Image]) -> Iterator[dict[str, Any]]:
    """Text and pictures of one turn; the template writes the line break after a picture."""
    for place, piece in enumerate(content.split(IMAGE)):
        if place:
            yield {"type": "image", "image": next(pictures)}
        if piece.strip():
            yield {"type": "text", "text": piece.removeprefix("\n") if place else piece}


def expected_words(sample: Sample) -> str:
    """What should be said: the last turn of the sample, or what its record keeps as the answer."""
    last = sample.messages[-1]
    text = last.content if last.role == "assistant" else str(sample.meta["answer"])
    return " ".join(text.replace(IMAGE_GEN, " ").split())


def as_answer(replied: ModelReply) -> Answer:
    """A reply to a question; one with a picture in it is no answer."""
    meta = replied.sample.meta
    said = replied.words if not replied.pictures else f"{replied.words} {IMAGE_GEN}"
    return Answer(
        str(meta["family"]),
        str(meta.get("setting", "")),
        expected_words(replied.sample),
        said,
        bool(meta["unseen"]),
    )


def as_drawings(replied: Sequence[ModelReply], judge: Judge) -> list[Drawing]:
    """Replies to requests for one picture, judged; a reply with no picture or several shows nothing."""
    verdicts = judge.judge([reply.picture for reply in replied])
    return [_drawing(reply, verdict) for reply, verdict in zip(replied, verdicts, strict=True)]


def _drawing(replied: ModelReply, verdict: Verdict) -> Drawing:
    meta, sample = replied.sample.meta, replied.sample
    if replied.picture is NOTHING_DRAWN:
        verdict = Verdict(None, None, None)
    return Drawing(
        str(meta["family"]),
        scene_of(sample),
        verdict,
        expected_words(sample),
        replied.words,
        bool(meta["unseen"]),
    )


def scene_of(sample: Sample) -> Scene:
    """What a sample's record says about its picture."""
    meta = sample.meta
    return Scene(int(meta["digit"]), meta["color"], meta["background"], int(meta["scan"]))
