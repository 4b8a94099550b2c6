"""Speed, memory and precision of a preset on one accelerator: `python -m bench.gpu --preset 7b --device
cuda`.

Random weights, made on the device. `--only train`: the Trainer's step of every stage, with and without
compiled blocks (`gpu_training.py`). `--only generate`: drawing, text, and the error of bfloat16 against
float32 part by part. Each begins nothing after `--minutes`. Every figure is printed, and put in the file, as
soon as it is there. Needs torch, transformers, accelerate, pydantic, pillow and this tree; peft, too, for
stage 2 where memory is short.
"""

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu_training import training_speed
from bench.requests import image_requests, random_model, text_requests, without_end_token
from bench.timing import machine, milliseconds, positive_int, report
from model.generation.generate import generate
from model.modeling import VargptForConditionalGeneration

TEXT_TOKENS = 128
BATCHES = (1, 4, 16, 64)
GIBIBYTE = 1 << 30


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Time a preset on one device.")
    parser.add_argument("--preset", default="7b", choices=("7b", "tiny"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--only", choices=("train", "generate"), help="one half of it")
    parser.add_argument("--minutes", type=float, default=5.5, help="of each half, after which none is begun")
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: after the table")
    options = parser.parse_args(arguments)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError):  # what torch raises for a device that it does not know or have
        parser.error(f"there is no device {options.device!r} here; --device cpu measures the processor")
    return options


def generation_speed(
    model: VargptForConditionalGeneration, repeats: int, device: str, is_over: Callable[[], bool]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Milliseconds of writing text, and tokens of it a second; of drawing at every batch size."""
    texts = text_requests(without_end_token(model), 1, TEXT_TOKENS)
    num_tokens = len(generate(model, texts)[0].token_ids)
    text = milliseconds(lambda: generate(model, texts), repeats, device)
    yield "text_ms", text
    yield "tokens_per_second", {"median": num_tokens / text["median"] * 1000}
    for batch in BATCHES:
        if is_over():
            return
        requests = image_requests(model, batch)
        try:
            drawn = milliseconds(lambda images=requests: generate(model, images), repeats, device)
        except torch.OutOfMemoryError:
            yield f"draw_ms_batch_{batch}", {"out_of_memory": True}
            return
        yield f"draw_ms_batch_{batch}", drawn


@torch.no_grad()
def bfloat16_errors(model: VargptForConditionalGeneration) -> dict[str, float]:
    """Relative error of each part in bfloat16: norm of the difference to float32 over the norm of float32."""
    return {name: _bfloat16_error(part, call) for name, (part, call) in _parts(model).items()}


def _parts(model: VargptForConditionalGeneration) -> dict[str, tuple[nn.Module, Callable]]:
    """Every part, and a call of it with random input of its own size in a given type."""
    config = model.config
    vision, width, count = config.vision_config, config.visual_decoder_config.width, config.num_image_tokens

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)

    pixels, words = noise(1, 3, vision.image_size, vision.image_size), noise(1, 32, config.hidden_size) * 0.02
    features = noise(1, config.num_vision_tokens, vision.hidden_size)
    cond, tokens = noise(1, width), noise(1, count, width)
    canvas = noise(1, config.image_tokenizer_config.latent_dim, *[config.scales[-1]] * 2)
    return {
        "vision_tower": (model.vision_tower, lambda part, dtype: part(pixels.to(dtype))),
        "understanding_projector": (
            model.understanding_projector,
            lambda part, dtype: part(features.to(dtype)),
        ),
        "language_model": (model.language_model, lambda part, dtype: part.states(words.to(dtype))),
        "visual_decoder": (
            model.visual_decoder,
            lambda part, dtype: part.predict(tokens.to(dtype), cond.to(dtype)),
        ),
        "image_tokenizer": (
            model.image_tokenizer,
            lambda part, dtype: part.decode_canvas(canvas.to(dtype)),
        ),
    }


def _bfloat16_error(part: nn.Module, call: Callable[[nn.Module, torch.dtype], Tensor]) -> float:
    """Of one part at a time, since a float32 copy of the whole model would not fit beside it."""
    own = next(part.parameters()).dtype
    rounded = call(part.to(torch.bfloat16), torch.bfloat16).float()
    exact = call(copy.deepcopy(part).float(), torch.float32)
    part.to(own)
    return float((rounded - exact).norm() / exact.norm())


def measure_generation(options: argparse.Namespace, measured: dict[str, Any]) -> Iterator[None]:
    """Add figures of generation, one at a time."""
    is_over = _deadline(options.minutes)
    model = random_model(options.preset, options.device, torch.bfloat16)
    measured["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    yield
    for name, figures in generation_speed(model, options.repeats, options.device, is_over):
        measured[name] = figures
        yield
    measured["bfloat16_error"] = bfloat16_errors(model)
    yield
    if options.device.startswith("cuda"):
        measured["peak_gib"] = torch.cuda.max_memory_allocated(options.device) / GIBIBYTE
        yield


def measure_training(options: argparse.Namespace, measured: dict[str, Any]) -> Iterator[None]:
    """Add figures of training, one stage and row length at a time."""
    is_over = _deadline(options.minutes)
    for name, figures in training_speed(options.preset, options.device, options.repeats, is_over):
        measured[name] = figures
        yield


def _deadline(minutes: float) -> Callable[[], bool]:
    end = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() > end


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report, after every figure to the file and at the end as a table."""
    options = read_arguments(arguments)
    measured: dict[str, Any] = {"preset": options.preset, "machine": machine(options.device)}
    halves = {"train": measure_training, "generate": measure_generation}
    for half in [options.only] if options.only else halves:
        known = set(measured)
        for _ in halves[half](options, measured):
            _keep({name: measured[name] for name in measured if name not in known}, measured, options.out)
            known |= set(measured)
    report(measured, options.out)


def _keep(new: Mapping[str, Any], measured: Mapping[str, Any], out: Path | None) -> None:
    """Print new figures at once, and replace the file: whoever ends this program finds both whole."""
    for name, figures in new.items():
        sys.stdout.write(f"{name} {json.dumps(figures)}\n")
    sys.stdout.flush()
    if out is not None:
        beside = out.with_name(f"{out.name}.tmp")
        beside.write_text(json.dumps(measured, indent=1) + "\n")
        os.replace(beside, out)


if __name__ == "__main__":
    main()
