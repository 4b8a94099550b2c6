"""Speed and precision of a preset on one accelerator: `python -m bench.gpu --preset 7b --device cuda`.

Random weights, made on the device. Measures images, text and a training step of stage 3, and the error of
bfloat16 against float32 part by part. Needs `model/` and what `model/` needs, nothing else.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.requests import image_requests, random_model, text_requests, without_end_token
from bench.timing import machine, milliseconds, positive_int, report
from model.generation.generate import generate
from model.losses import IGNORED
from model.modeling import VargptForConditionalGeneration

TEXT_TOKENS = 128
BATCHES = (1, 16)
GIBIBYTE = 1 << 30
# What learns in stage 3; a test holds this against the table of stages.
STAGE3_TRAINS = ("generation_input_projector", "generation_output_projector", "visual_decoder")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Time a preset on one device.")
    parser.add_argument("--preset", default="7b", choices=("7b", "tiny"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: after the table")
    options = parser.parse_args(arguments)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError):  # what torch raises for a device that it does not know or have
        parser.error(f"there is no device {options.device!r} here; --device cpu measures the processor")
    return options


def generation_speed(
    model: VargptForConditionalGeneration, repeats: int, device: str
) -> dict[str, dict[str, float]]:
    """Milliseconds of drawing at both batch sizes and of writing text; tokens of text per second."""
    measured = {}
    for batch in BATCHES:
        requests = image_requests(model, batch)
        measured[f"draw_ms_batch_{batch}"] = milliseconds(
            lambda images=requests: generate(model, images), repeats, device
        )
    texts = text_requests(without_end_token(model), 1, TEXT_TOKENS)
    num_tokens = len(generate(model, texts)[0].token_ids)
    measured["text_ms"] = milliseconds(lambda: generate(model, texts), repeats, device)
    measured["tokens_per_second"] = {"median": num_tokens / measured["text_ms"]["median"] * 1000}
    return measured


def stage3_step(model: VargptForConditionalGeneration, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of one training step on one sample: forward, backward, AdamW. Leaves no gradients."""
    model.requires_grad_(False)
    for path in STAGE3_TRAINS:
        model.get_submodule(path).requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    batch = drawing_batch(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss_sums(**batch).mean().backward()
        optimizer.step()

    duration = milliseconds(step, repeats, device)
    optimizer.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return duration


def drawing_batch(model: VargptForConditionalGeneration) -> dict[str, Tensor]:
    """One sample that draws one image of random codes after the empty instruction."""
    config, count = model.config, model.config.num_image_tokens
    pads = [config.image_pad_token_id] * count
    ids = [*config.null_prompt, config.image_start_token_id, *pads, config.image_end_token_id]
    input_ids = torch.tensor([ids], device=model.device)
    codes = torch.randint(config.image_tokenizer_config.codebook_size, (1, count), device=model.device)
    return {"input_ids": input_ids, "labels": torch.full_like(input_ids, IGNORED), "codes": codes}


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
    rounded = call(part.to(torch.bfloat16), torch.bfloat16).float()
    exact = call(copy.deepcopy(part).float(), torch.float32)
    return float((rounded - exact).norm() / exact.norm())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = read_arguments(arguments)
    model = random_model(options.preset, options.device, torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    measured: dict[str, Any] = {"preset": options.preset, "parameters": parameters}
    measured["machine"] = machine(options.device)
    measured |= generation_speed(model, options.repeats, options.device)
    measured["stage3_step_ms"] = stage3_step(model, options.repeats, options.device)
    measured["bfloat16_error"] = bfloat16_errors(model)
    if options.device.startswith("cuda"):
        measured["peak_gib"] = torch.cuda.max_memory_allocated(options.device) / GIBIBYTE
    report(measured, options.out)


if __name__ == "__main__":
    main()
