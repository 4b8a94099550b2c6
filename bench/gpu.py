"""What one accelerator does with a preset: `python -m bench.gpu --preset 7b --device cuda`.

Random weights, built on the device. Draws, speaks, takes one training step of stage 3, and compares bfloat16
with float32 part by part. Needs torch, transformers, safetensors, numpy, pillow and `model/`.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.requests import drawing_requests, never_stopping, random_model, speaking_requests
from bench.timing import machine, milliseconds, show
from model.generation.generate import generate
from model.modeling import VargptForConditionalGeneration

WORDS = 128
BATCHES = (1, 16)
GIBIBYTE = 1 << 30
# What learns in stage 3; a test holds this against the table of stages.
STAGE3_TRAINS = ("generation_input_projector", "generation_output_projector", "visual_decoder")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads what to measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Time a preset on one device.")
    parser.add_argument("--preset", default="7b", choices=("7b", "tiny"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: after the table")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"there is no device {options.device!r} here; --device cpu measures the processor")
    return options


def generation_figures(
    model: VargptForConditionalGeneration, repeats: int, device: str
) -> dict[str, dict[str, float]]:
    """Milliseconds of drawing at both batches, and of speaking."""
    figures = {}
    for batch in BATCHES:
        requests = drawing_requests(model, batch)
        figures[f"draw_ms_batch_{batch}"] = milliseconds(
            lambda asked=requests: generate(model, asked), repeats, device
        )
    requests = speaking_requests(never_stopping(model), 1, WORDS)
    spoken = len(generate(model, requests)[0].token_ids)
    figures["speak_ms"] = milliseconds(lambda: generate(model, requests), repeats, device)
    figures["words_per_second"] = {"median": spoken / figures["speak_ms"]["median"] * 1000}
    return figures


def stage3_step(model: VargptForConditionalGeneration, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of one training step on one drawing: forward, backward, AdamW. Leaves no gradients."""
    model.requires_grad_(False)
    for path in STAGE3_TRAINS:
        model.get_submodule(path).requires_grad_(True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5)
    batch = drawing_batch(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss_sums(**batch).mean().backward()
        optimizer.step()

    taken = milliseconds(step, repeats, device)
    optimizer.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return taken


def drawing_batch(model: VargptForConditionalGeneration) -> dict[str, Tensor]:
    """One sample that draws one picture of random codes."""
    config = model.config
    spots = [config.image_pad_token_id] * config.num_image_tokens
    ids = [*config.null_prompt, config.image_start_token_id, *spots, config.image_end_token_id]
    input_ids = torch.tensor([ids], device=model.device)
    codes = torch.randint(config.image_tokenizer_config.codebook_size, (1, len(spots)), device=model.device)
    return {"input_ids": input_ids, "labels": torch.full_like(input_ids, -100), "codes": codes}


@torch.no_grad()
def type_errors(model: VargptForConditionalGeneration) -> dict[str, float]:
    """How far each part in bfloat16 is from float32: norm of difference over norm."""
    return {name: _error(part, run) for name, (part, run) in _parts(model).items()}


def _parts(model: VargptForConditionalGeneration) -> dict[str, tuple[nn.Module, Callable]]:
    """Every part with a call of it on random input of its own size, in the type that is asked for."""
    config = model.config
    vision, width, count = config.vision_config, config.visual_decoder_config.width, config.num_image_tokens

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)

    pixels, words = noise(1, 3, vision.image_size, vision.image_size), noise(1, 32, config.hidden_size) * 0.02
    features = noise(1, config.num_vision_tokens, vision.hidden_size)
    cond, pyramid = noise(1, width), noise(1, count, width)
    latent = noise(1, config.image_tokenizer_config.latent_dim, *[config.scales[-1]] * 2)
    return {
        "vision_tower": (model.vision_tower, lambda part, dtype: part(pixels.to(dtype))),
        "understanding_projector": (
            model.understanding_projector,
            lambda part, dtype: part(features.to(dtype)),
        ),
        "language_model": (model.language_model, lambda part, dtype: part.states(words.to(dtype))),
        "visual_decoder": (
            model.visual_decoder,
            lambda part, dtype: part.predict(pyramid.to(dtype), cond.to(dtype)),
        ),
        "image_tokenizer": (
            model.image_tokenizer,
            lambda part, dtype: part.decode_canvas(latent.to(dtype)),
        ),
    }


def _error(part: nn.Module, run: Callable[[nn.Module, torch.dtype], Tensor]) -> float:
    """One part at a time in float32: the whole would not fit beside itself."""
    low = run(part.to(torch.bfloat16), torch.bfloat16).float()
    twin = copy.deepcopy(part).float()
    high = run(twin, torch.float32)
    return float((low - high).norm() / high.norm())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and shows."""
    options = read_arguments(arguments)
    model = random_model(options.preset, options.device, torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result: dict[str, Any] = {"preset": options.preset, "parameters": parameters}
    result["machine"] = machine(options.device)
    result |= generation_figures(model, options.repeats, options.device)
    result["stage3_step_ms"] = stage3_step(model, options.repeats, options.device)
    result["bfloat16_error"] = type_errors(model)
    if options.device.startswith("cuda"):
        result["peak_gib"] = torch.cuda.max_memory_allocated() / GIBIBYTE
    show(result, options.out)


if __name__ == "__main__":
    main()
