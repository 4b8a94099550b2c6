"""Which backbones each of the two worker processes trains, in which order, and what they need to know.

Image tokenizer, then visual decoder, which learns from its codes; vision tower, then language model.

The two workers run at the same time with one thread each: two processes of one thread do more than two
threads of one process, as small matrices leave a second thread idle. The decoder, which takes longest and is
alone in the end, has all threads.
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
from training.backbones.backbone_checkpoints import BackboneCheckpoints, never_stop
from training.backbones.fit import FitSettings
from training.backbones.image_tokenizer import train_tokenizer
from training.backbones.language_model import open_conversations, tiny_processor, train_language
from training.backbones.vision_tower import train_vision
from training.backbones.visual_decoder import train_decoder
from training.backbones.worker_processes import ParentConnection, Worker
from training.digits.scene_pool import read_pool
from training.params import BackboneParams, OptimizerParams
from training.precision import training_device
from training.registry.lineage import config_sha256

Backbone = TypeVar("Backbone", bound=nn.Module)

# Name of each backbone in `params.backbones` -> its module in the model.
BACKBONES = {
    "tokenizer": "image_tokenizer",
    "decoder": "visual_decoder",
    "vision": "vision_tower",
    "language": "language_model",
}
# Backbones that another one learns from, besides the prepared data.
DEPENDENCIES = {"decoder": ("tokenizer",)}


@dataclass(frozen=True, kw_only=True)
class BackboneTask:
    """What the workers must know to train all backbones; sent to their processes by pickle.

    Args:
        checkpoint_dir: Folder with a folder of checkpoints for each backbone.
        identity: Hash of the prepared data and of whatever else all backbones depend on.
        checkpoint_every: Steps between two checkpoints of a backbone.
    """

    preset: str
    params: BackboneParams
    optimizer: OptimizerParams
    prepared: Path
    checkpoint_dir: Path
    seed: int
    precision: str
    identity: str
    text_tokenizer: PreTrainedTokenizerFast
    checkpoint_every: int

    def fingerprint(self, backbone: str) -> str:
        """Hash of all that decides what a backbone learns."""
        facts: dict[str, Any] = {
            "identity": self.identity,
            "seed": self.seed,
            "precision": self.precision,
            "preset": preset(self.preset).to_dict(),
            "params": getattr(self.params, backbone).model_dump(),
            "optimizer": self.optimizer.model_dump(),
            "learns_from": [self.fingerprint(other) for other in DEPENDENCIES.get(backbone, ())],
        }
        if backbone == "language":
            facts["text_tokenizer"] = self.text_tokenizer.backend_tokenizer.to_str()
        return config_sha256(facts)

    def checkpoints(self, backbone: str, should_stop: Callable[[], bool] = never_stop) -> BackboneCheckpoints:
        """The checkpoints of a backbone."""
        folder = self.checkpoint_dir / backbone
        return BackboneCheckpoints(folder, self.fingerprint(backbone), self.checkpoint_every, should_stop)


def train_drawing_backbones(task: BackboneTask, parent: ParentConnection) -> None:
    """Train the image tokenizer, then the visual decoder on its codes."""
    config, params = preset(task.preset), task.params
    pool = read_pool(task.prepared / "scenes", "drawn").to(training_device())
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = _load_or_train(
        task,
        parent,
        "tokenizer",
        lambda: ImageTokenizer(config.image_tokenizer_config),
        lambda module, settings: train_tokenizer(module, pool, params.tokenizer, settings),
    )
    torch.set_num_threads(num_threads)
    _load_or_train(
        task,
        parent,
        "decoder",
        lambda: VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config),
        lambda module, settings: train_decoder(module, tokenizer, pool, params.decoder, settings),
    )


def train_understanding_backbones(task: BackboneTask, parent: ParentConnection) -> None:
    """Train the vision tower, then the language model."""
    torch.set_num_threads(1)
    config, params = preset(task.preset), task.params
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    pool = read_pool(task.prepared / "scenes", "train").to(training_device())
    _load_or_train(
        task,
        parent,
        "vision",
        lambda: VisionTower(config.vision_config, layer, strategy),
        lambda module, settings: train_vision(module, pool, params.vision, settings),
    )
    processor = tiny_processor(config, task.text_tokenizer)
    samples = open_conversations(task.prepared, "text")
    _load_or_train(
        task,
        parent,
        "language",
        lambda: LanguageModel(config.text_config),
        lambda module, settings: train_language(module, processor, samples, params.language, settings),
    )


# Workers that run at the same time: name -> function, and the backbones that it trains.
WORKERS = {
    "drawing worker": (train_drawing_backbones, ("tokenizer", "decoder")),
    "understanding worker": (train_understanding_backbones, ("vision", "language")),
}


def unfinished_workers(task: BackboneTask) -> dict[str, Worker]:
    """The workers with a backbone that is not trained yet, by name."""
    return {
        name: partial(worker, task)
        for name, (worker, backbones) in WORKERS.items()
        if any(task.checkpoints(backbone).load_trained() is None for backbone in backbones)
    }


def _load_or_train(
    task: BackboneTask,
    parent: ParentConnection,
    name: str,
    make: Callable[[], Backbone],
    train: Callable[[Backbone, FitSettings], object],
) -> Backbone:
    """A trained backbone: loaded if its training is done, else trained from its newest checkpoint."""
    torch.manual_seed(task.seed)
    backbone = make().to(training_device()).requires_grad_(False).eval()
    checkpoints = task.checkpoints(name, parent.should_stop)
    if (weights := checkpoints.load_trained()) is not None:
        backbone.load_state_dict(weights)
        return backbone
    backbone.requires_grad_(True)
    settings = FitSettings(
        name=name,
        seed=task.seed,
        optimizer_params=task.optimizer,
        on_step=partial(parent.report_step, name),
        precision=task.precision,
        checkpoints=checkpoints,
    )
    train(backbone, settings)
    checkpoints.save_trained(getattr(task.params, name).steps, backbone.state_dict())
    return backbone
