"""The four parts in two workers side by side: what draws (image tokenizer, then the decoder of its codes) and
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
from training.backbones.fit import FitSettings
from training.backbones.image_tokenizer import train_tokenizer
from training.backbones.language_model import read_conversations, tiny_processor, train_language
from training.backbones.part_checkpoints import PartCheckpoints, never
from training.backbones.vision_tower import train_vision
from training.backbones.visual_decoder import train_decoder
from training.backbones.worker_processes import ParentChannel, Worker
from training.digits.scene_pool import read_pool
from training.params import BackboneParams, OptimizerParams
from training.precision import training_device
from training.registry.lineage import config_sha256

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
class BackboneTask:
    """All that the workers need to know; it goes to other processes whole.

    Args:
        parts: The folder that keeps every part.
        identity: Names the data and whatever else all parts depend on.
        checkpoint_every: Steps between two checkpoints of a part.
    """

    preset: str
    params: BackboneParams
    optimizer: OptimizerParams
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
            "params": getattr(self.params, part).model_dump(),
            "optimizer": self.optimizer.model_dump(),
            "learns_from": [self.fingerprint(other) for other in LEARNS_FROM.get(part, ())],
        }
        if part == "language":
            facts["text_tokenizer"] = self.text_tokenizer.backend_tokenizer.to_str()
        return config_sha256(facts)

    def checkpoints(self, part: str, should_stop: Callable[[], bool] = never) -> PartCheckpoints:
        """Where a part keeps what it has learned."""
        return PartCheckpoints(self.parts / part, self.fingerprint(part), self.checkpoint_every, should_stop)


def train_drawing_parts(task: BackboneTask, channel: ParentChannel) -> None:
    """Learn the image tokenizer, then the decoder of its codes."""
    config, params = preset(task.preset), task.params
    pool = read_pool(task.prepared / "scenes", "drawn").to(training_device())
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = _learned(
        task,
        channel,
        "tokenizer",
        lambda: ImageTokenizer(config.image_tokenizer_config),
        lambda part, settings: train_tokenizer(part, pool, params.tokenizer, settings),
    )
    torch.set_num_threads(num_threads)
    _learned(
        task,
        channel,
        "decoder",
        lambda: VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config),
        lambda part, settings: train_decoder(part, tokenizer, pool, params.decoder, settings),
    )


def train_reading_parts(task: BackboneTask, channel: ParentChannel) -> None:
    """Learn the vision tower, then the language model."""
    torch.set_num_threads(1)
    config, params = preset(task.preset), task.params
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    pool = read_pool(task.prepared / "scenes", "train").to(training_device())
    _learned(
        task,
        channel,
        "vision",
        lambda: VisionTower(config.vision_config, layer, strategy),
        lambda part, settings: train_vision(part, pool, params.vision, settings),
    )
    processor = tiny_processor(config, task.text_tokenizer)
    samples = read_conversations(task.prepared, "text")
    _learned(
        task,
        channel,
        "language",
        lambda: LanguageModel(config.text_config),
        lambda part, settings: train_language(part, processor, samples, params.language, settings),
    )


# What runs side by side; the parts that each worker makes.
WORKERS = {
    "drawing worker": (train_drawing_parts, ("tokenizer", "decoder")),
    "reading worker": (train_reading_parts, ("vision", "language")),
}


def unfinished_workers(task: BackboneTask) -> dict[str, Worker]:
    """The workers that still have something to learn, by name."""
    return {
        name: partial(worker, task)
        for name, (worker, parts) in WORKERS.items()
        if any(task.checkpoints(part).finished() is None for part in parts)
    }


def _learned(
    task: BackboneTask,
    channel: ParentChannel,
    name: str,
    make: Callable[[], Part],
    train: Callable[[Part, FitSettings], object],
) -> Part:
    """A part with its weights: those that are there already, or learned now, from where it was left."""
    torch.manual_seed(task.seed)
    part = make().to(training_device()).requires_grad_(False).eval()
    checkpoints = task.checkpoints(name, channel.should_stop)
    if (weights := checkpoints.finished()) is not None:
        part.load_state_dict(weights)
        return part
    part.requires_grad_(True)
    report = partial(channel.report, name)
    train(
        part,
        FitSettings(
            seed=task.seed,
            optimizer=task.optimizer,
            report=report,
            precision=task.precision,
            checkpoints=checkpoints,
        ),
    )
    checkpoints.seal(getattr(task.params, name).steps, part.state_dict())
    return part
