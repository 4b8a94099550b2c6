"""How fast the model draws and speaks on this machine: `python -m bench.latency --threads 2`.

Types are compared side by side in one run. Random weights, unless a published model is named.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.requests import drawing_requests, never_stopping, random_model, speaking_requests
from bench.timing import machine, milliseconds, show
from model.checkpoint import load_model
from model.generation.generate import generate
from model.modeling import VargptForConditionalGeneration

BATCHES = (1, 16)
WORDS = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads what to measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description="Time drawing and speaking.")
    parser.add_argument("--model", type=Path, help="a published model; default: preset tiny, random weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: after the table")
    return parser.parse_args(arguments)


@torch.no_grad()
def measure(model: VargptForConditionalGeneration, repeats: int) -> dict[str, Any]:
    """Images in ms each and words per second by batch, and the parts in ms."""
    result: dict[str, Any] = {}
    for batch in BATCHES:
        drawing, speaking = drawing_requests(model, batch), speaking_requests(model, batch, WORDS)
        taken = milliseconds(lambda requests=drawing: generate(model, requests), repeats, "cpu")
        result[f"image_ms_each_batch_{batch}"] = {
            name: value / batch if name != "repeats" else value for name, value in taken.items()
        }
        spoken = sum(len(reply.token_ids) for reply in generate(model, speaking))
        taken = milliseconds(lambda requests=speaking: generate(model, requests), max(repeats // 4, 1), "cpu")
        result[f"words_per_second_batch_{batch}"] = spoken / taken["median"] * 1000
    config, tokenizer = model.config, model.image_tokenizer
    seen = torch.rand(1, 3, *[config.vision_config.image_size] * 2, dtype=model.dtype)
    drawn = torch.rand(1, 3, *[config.image_size] * 2, dtype=model.dtype) * 2 - 1
    codes = tokenizer.encode(drawn)
    parts = {
        "vision_tower": lambda: model.image_features(seen),
        "tokenizer_encode": lambda: tokenizer.encode(drawn),
        "tokenizer_decode": lambda: tokenizer.decode(codes),
    }
    result["part_ms"] = {name: milliseconds(part, repeats, "cpu") for name, part in parts.items()}
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and shows."""
    options = read_arguments(arguments)
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": machine("cpu")}
    for name, dtype in DTYPES.items():
        model = load_model(options.model, dtype)[0] if options.model else random_model("tiny", "cpu", dtype)
        result[name] = measure(never_stopping(model), options.repeats)
    key = "image_ms_each_batch_1"
    result["bfloat16_over_float32"] = result["bfloat16"][key]["median"] / result["float32"][key]["median"]
    show(result, options.out)


if __name__ == "__main__":
    main()
