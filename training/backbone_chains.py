"""The four parts in two chains side by side: what draws (image tokenizer, then the decoder of its codes) and
what reads (vision tower, then language model).

As long as both run, each has one thread: two processes of one thread do more than two threads in one, as
small matrices leave a second waiting. The decoder, which takes longest and is alone in the end, has all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.backbones import LanguageModel, VisionTower
from model.config import preset
from model.image_tokenizer import ImageTokenizer
from model.visual_decoder import VisualDecoder
from training.backbone_decoder import train_decoder
from training.backbone_keeper import PartKeeper, never
from training.backbone_language import read_conversations, tiny_processor, train_language
from training.backbone_processes import Chain, Link
from training.backbone_tokenizer import train_tokenizer
from training.backbone_vision import train_vision
from training.fit import Course
from training.lineage import config_sha256
from training.params import BackboneParams, plain
from training.scene_pool import read_pool

Part = TypeVar("Part", bound=nn.Module)

# What each part of `params.backbones` becomes in the model.
PARTS = {
    "tokenizer": "image_tokenizer",
    "decoder": "visual_decoder",
    "vision": "vision_tower",
    "language": "language_model",
}
# What else a part is learned from, besides the prepared data.
LEARNS_FROM = {"decoder": ("tokenizer",)}


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that the chains need to know; it goes to other processes whole.

    Args:
        parts: The folder that keeps every part.
        identity: Names the data and whatever else all parts depend on.
        checkpoint_every: Steps between two checkpoints of a part.
    """

    preset: str
    params: BackboneParams
    prepared: Path
    parts: Path
    seed: int
    precision: str
    identity: str
    text_tokenizer: PreTrainedTokenizerFast
    checkpoint_every: int

    def fingerprint(self, part: str) -> str:
        """Names what a part learns from and how."""
        facts: dict[str, Any] = {
            "identity": self.identity,
            "seed": self.seed,
            "precision": self.precision,
            "preset": preset(self.preset).to_dict(),
            "params": plain(getattr(self.params, part)),
            "learns_from": [self.fingerprint(other) for other in LEARNS_FROM.get(part, ())],
        }
        if part == "language":
            facts["text_tokenizer"] = self.text_tokenizer.backend_tokenizer.to_str()
        return config_sha256(facts)

    def keeper(self, part: str, should_stop: Callable[[], bool] = never) -> PartKeeper:
        """Where a part keeps what it has learned."""
        return PartKeeper(self.parts / part, self.fingerprint(part), self.checkpoint_every, should_stop)


def drawing_chain(task: Task, link: Link) -> None:
    """Learn the image tokenizer, then the decoder of its codes."""
    config, params = preset(task.preset), task.params
    pool = read_pool(task.prepared / "scenes", "drawn")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = _learned(
        task,
        link,
        "tokenizer",
        lambda: ImageTokenizer(config.image_tokenizer_config),
        lambda part, course: train_tokenizer(part, pool, params.tokenizer, course),
    )
    torch.set_num_threads(num_threads)
    _learned(
        task,
        link,
        "decoder",
        lambda: VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config),
        lambda part, course: train_decoder(part, tokenizer, pool, params.decoder, course),
    )


def reading_chain(task: Task, link: Link) -> None:
    """Learn the vision tower, then the language model."""
    torch.set_num_threads(1)
    config, params = preset(task.preset), task.params
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    pool = read_pool(task.prepared / "scenes", "train")
    _learned(
        task,
        link,
        "vision",
        lambda: VisionTower(config.vision_config, layer, strategy),
        lambda part, course: train_vision(part, pool, params.vision, course),
    )
    processor = tiny_processor(config, task.text_tokenizer)
    samples = read_conversations(task.prepared, "text")
    _learned(
        task,
        link,
        "language",
        lambda: LanguageModel(config.text_config),
        lambda part, course: train_language(part, processor, samples, params.language, course),
    )


# What runs side by side; the parts that each chain makes.
CHAINS = {
    "drawing chain": (drawing_chain, ("tokenizer", "decoder")),
    "reading chain": (reading_chain, ("vision", "language")),
}


def unfinished_chains(task: Task) -> dict[str, Chain]:
    """The chains that still have something to learn, by name."""
    return {
        name: partial(chain, task)
        for name, (chain, parts) in CHAINS.items()
        if any(task.keeper(part).finished() is None for part in parts)
    }


def _learned(
    task: Task,
    link: Link,
    name: str,
    make: Callable[[], Part],
    train: Callable[[Part, Course], object],
) -> Part:
    """A part with its weights: those that are there already, or learned now, from where it was left."""
    torch.manual_seed(task.seed)
    part = make().requires_grad_(False).eval()
    keeper = task.keeper(name, link.should_stop)
    if (weights := keeper.finished()) is not None:
        part.load_state_dict(weights)
        return part
    part.requires_grad_(True)
    report = partial(link.report, name)
    train(part, Course(seed=task.seed, report=report, precision=task.precision, keeper=keeper))
    keeper.seal(getattr(task.params, name).steps, part.state_dict())
    return part
