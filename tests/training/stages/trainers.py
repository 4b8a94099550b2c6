"""Trainers of a tiny model, and the samples that they learn from."""

import torch
from PIL import Image

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.volume import ROOT
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.engines.make import make_engine
from training.params import load_params
from training.stages.stage_table import freeze_for, stage_named
from training.stages.trainer import Trainer

CONFIG = preset("tiny")
SHORT = {"steps": 6, "batch": 2, "micro_batch": 1, "warmup": 1, "muon_lr": 0.0, "ema": 0.0}


def make_drawings(folder, count):
    """Samples that draw one picture each, of another colour and after words of another number."""
    samples = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.new("RGB", (32, 32), (17 * index % 256, 90, 40)).save(path)
        messages = (Message("user", "Draw " * (index + 1)), Message("assistant", "Here <image_gen>"))
        samples.append(Sample(f"id-{index}", messages, (ImageRef(path),), "set", {}))
    return samples


def make_loader(samples, params, held_out=None):
    """A loader of some samples, and of others that are held out."""
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer(["Draw Here"], CONFIG))
    mixture = Mixture([(samples, 1.0)], 0, Mixture([(held_out, 1.0)], 0) if held_out else None)
    return BatchLoader(mixture, processor, CONFIG.image_tokenizer_config, params, 0, BadRecordLog(), 1.0)


def make_model():
    """An untrained model, always the same."""
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG)
    model.visual_decoder.initialize()
    return model


def make_trainer(folder, samples, stage="stage3", held_out=None, **changes):
    """A trainer of a stage in float32, from that model."""
    params = load_params(ROOT / "params.yaml", "smoke").model_copy(update={"precision": "no"})
    recipe = getattr(params, stage).model_copy(update=SHORT | changes)
    model = make_model()
    learning = freeze_for(model, stage_named(stage), recipe.lora)
    loader = make_loader(samples, recipe, held_out)
    engine = make_engine(recipe, params)
    return Trainer(engine, model, learning, loader, recipe, params, folder / "checkpoints", lambda: False)
