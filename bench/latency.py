"""Latency of images and text on a CPU: `python -m bench.latency --threads 2`.

Measures float32 and bfloat16 in one run. Random weights, unless a saved model is named.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.requests import image_requests, random_model, text_requests, without_end_token
from bench.timing import machine, milliseconds, positive_int, report
from model.checkpoint import load_model
from model.generation.generate import generate
from model.modeling import VargptForConditionalGeneration

DEVICE = "cpu"
BATCHES = (1, 16)
TEXT_TOKENS = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description="Time images and text.")
    parser.add_argument("--model", type=Path, help="a saved model; default: preset tiny, random weights")
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=positive_int, default=20)
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: after the table")
    return parser.parse_args(arguments)


@torch.no_grad()
def measure(model: VargptForConditionalGeneration, repeats: int) -> dict[str, Any]:
    """Milliseconds of each image and tokens per second by batch size, and milliseconds of single parts."""
    measured: dict[str, Any] = {}
    for batch in BATCHES:
        images, texts = image_requests(model, batch), text_requests(model, batch, TEXT_TOKENS)
        duration = milliseconds(lambda requests=images: generate(model, requests), repeats, DEVICE)
        measured[f"image_ms_each_batch_{batch}"] = {
            name: value / batch if name != "repeats" else value for name, value in duration.items()
        }
        num_tokens = sum(len(reply.token_ids) for reply in generate(model, texts))
        fewer = max(repeats // 4, 1)
        duration = milliseconds(lambda requests=texts: generate(model, requests), fewer, DEVICE)
        measured[f"tokens_per_second_batch_{batch}"] = num_tokens / duration["median"] * 1000
    measured["part_ms"] = _part_milliseconds(model, repeats)
    return measured


def _part_milliseconds(model: VargptForConditionalGeneration, repeats: int) -> dict[str, dict[str, float]]:
    config, tokenizer = model.config, model.image_tokenizer
    input_pixels = torch.rand(1, 3, *[config.vision_config.image_size] * 2, dtype=model.dtype)
    drawn_pixels = torch.rand(1, 3, *[config.image_size] * 2, dtype=model.dtype) * 2 - 1
    codes = tokenizer.encode(drawn_pixels)
    parts = {
        "vision_tower": lambda: model.image_features(input_pixels),
        "tokenizer_encode": lambda: tokenizer.encode(drawn_pixels),
        "tokenizer_decode": lambda: tokenizer.decode(codes),
    }
    return {name: milliseconds(part, repeats, DEVICE) for name, part in parts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = read_arguments(arguments)
    torch.set_num_threads(options.threads)
    measured: dict[str, Any] = {"machine": machine(DEVICE)}
    for name, dtype in DTYPES.items():
        model = load_model(options.model, dtype)[0] if options.model else random_model("tiny", DEVICE, dtype)
        measured[name] = measure(without_end_token(model), options.repeats)
    key = "image_ms_each_batch_1"
    measured["bfloat16_over_float32"] = (
        measured["bfloat16"][key]["median"] / measured["float32"][key]["median"]
    )
    report(measured, options.out)


if __name__ == "__main__":
    main()
