"""Trains all parts of a tiny model on samples of every kind, under the engine that its arguments name.

Rank zero writes losses, gradient norms and record names of every step to `FOLDER/steps.jsonl`.
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from training.checkpoints import step_folders
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.engines.make import make_engine
from training.errors import Stopped
from training.params import LoraParams, Params, StageParams, load_params
from training.stages import checkpointing
from training.stages.stage_table import freeze_for, stage_named
from training.stages.trainer import Trainer

ROOT = Path(__file__).parents[3]
COLORS = ("red", "green", "blue", "black", "white")
ADAPTERS = LoraParams(rank=4, alpha=8.0, dropout=0.0, modules=["language_model", "visual_decoder"])
# Ranks that are killed while they save, by what they are about.
VICTIMS = {"part": 1, "marker": 0}


def samples_of_every_kind(folder: Path) -> list[Sample]:
    """Understanding, drawing, both in one conversation, and text alone."""
    pictures = []
    for color in COLORS:
        pictures.append(ImageRef(folder / f"{color}.png"))
        Image.new("RGB", (32, 32), color).save(pictures[-1].path)
    samples = []
    for index in range(20):
        seen, drawn, color = pictures[index % 5], pictures[(index * 3 + 1) % 5], COLORS[index % 5]
        ask = Message("user", f"{color} what is <image>")
        draw = Message("assistant", f"a {color} one <image_gen>")
        kinds = [
            ((ask, Message("assistant", color)), (seen,)),
            ((Message("user", f"draw {color}"), draw), (drawn,)),
            ((ask, draw), (seen, drawn)),
            ((Message("user", "what is a"), Message("assistant", f"{color} one draw")), ()),
        ]
        messages, images = kinds[index % 4]
        samples.append(Sample(f"id-{index}", messages, images, "set", {}))
    return samples


def has_drawing(record_name: str) -> bool:
    """Whether a sample's reply, of the name that a record of `steps.jsonl` has, draws."""
    return int(record_name.rpartition("id-")[2].rstrip(")")) % 4 in (1, 2)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="ddp")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--precision", default="no")
    parser.add_argument("--stage", default="joint")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--die-in", choices=VICTIMS)
    parser.add_argument("--die-at", type=int, help="the step that is being saved")
    return parser.parse_args(arguments)


def recipe_of(options: argparse.Namespace) -> tuple[Params, StageParams]:
    params = load_params(ROOT / "params.yaml", "smoke").model_copy(update={"precision": options.precision})
    changes = {
        "engine": options.engine,
        "offload": options.offload,
        "checkpoint_activations": options.checkpoint_activations,
        "lora": ADAPTERS if options.lora else None,
        "steps": options.steps,
        "batch": options.batch,
        "micro_batch": 1,
        "muon_lr": 0.0,
        "lr": 1e-3,
        "warmup": 4,
        "text_weight": 1.0,
        "checkpoint_every": options.checkpoint_every,
    }
    return params, getattr(params, options.stage).model_copy(update=changes)


def die_in(where: str, step: int) -> None:
    """Have this process killed while it saves a step: its part is half written, or rank zero has all parts
    and writes the marker.
    """
    owner, name = {"part": (checkpointing, "write_part"), "marker": (step_folders, "write_manifest")}[where]
    work = getattr(owner, name)

    def die(path: Path, *others: Any) -> Any:
        done = work(path, *others)
        if f"step_{step}.tmp" in path.parts:
            if where == "part":
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, die)


def main() -> None:
    options = options_of()
    params, chosen = recipe_of(options)

    torch.manual_seed(0)
    config = preset("tiny")
    model = VargptForConditionalGeneration(config)
    model.visual_decoder.initialize()
    words = ["draw what is a one", " ".join(COLORS)]
    processor = VargptProcessor.for_config(config, build_text_tokenizer(words, config))
    mixture = Mixture([(samples_of_every_kind(options.folder), 1.0)], 0)
    loader = BatchLoader(mixture, processor, config.image_tokenizer_config, chosen, 0, BadRecordLog(), 1.0)
    learning = freeze_for(model, stage_named(options.stage), chosen.lora)
    engine = make_engine(chosen, params)
    if options.die_in and engine.rank == VICTIMS[options.die_in]:
        die_in(options.die_in, options.die_at)
    num_begun = 0

    def should_stop() -> bool:
        nonlocal num_begun
        num_begun += 1
        return bool(options.stop_after) and num_begun > options.stop_after

    trainer = Trainer(engine, model, learning, loader, chosen, params, options.folder / "steps", should_stop)
    first, metadata = trainer.resume()
    with (options.folder / "steps.jsonl").open("a") as file:

        def write(metrics) -> None:
            if engine.is_main:
                names = [str(name) for name in loader.record_names(metrics.step)]
                record = {
                    "step": metrics.step,
                    "losses": metrics.losses,
                    "norm": metrics.gradient_norm,
                    "records": names,
                }
                file.write(json.dumps(record) + "\n")
                file.flush()

        try:
            trainer.run(first, write, lambda: metadata)
        except Stopped:
            return
        trainer.save_last({})


if __name__ == "__main__":
    main()
