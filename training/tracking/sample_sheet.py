"""A contact sheet of drawings of fixed prompts, so that a stage's progress can be seen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image

from model.generation.generate import generate
from model.generation.sampling import SamplingParams
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.transforms import picture

ENLARGED = 2


@torch.no_grad()
def sample_sheet(
    model: VargptForConditionalGeneration, processor: VargptProcessor, prompts: Sequence[str]
) -> Image.Image:
    """One drawing for every prompt, side by side; the same seeds each time."""
    requests = [
        processor.request(
            [{"role": "user", "content": prompt}],
            SamplingParams(seed=seed, max_new_tokens=1),
            force_image=True,
        )
        for seed, prompt in enumerate(prompts)
    ]
    modes = {module: module.training for module in model.modules()}
    with _rounded(model):
        replies = generate(model.eval(), requests)
    for module, was_training in modes.items():
        module.training = was_training
    side = processor.drawn_size
    sheet = Image.new("RGB", (side * len(requests), side), "white")
    for place, reply in enumerate(replies):
        for pixels in reply.images[:1]:
            sheet.paste(picture(pixels), (place * side, 0))
    return sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.NEAREST)


@contextmanager
def _rounded(model: VargptForConditionalGeneration) -> Iterator[None]:
    """Within the block, weights that learn are in bfloat16 where frozen ones are: a product takes one type.

    In training that is the work of autocast, which a cache of keys does not know.
    """
    parts = [part for name, part in model.named_children() if name != "image_tokenizer"]
    weights = [weight for part in parts for weight in part.parameters()]
    exact = [weight for weight in weights if weight.dtype == torch.float32]
    values = [weight.data for weight in exact]
    if any(weight.dtype == torch.bfloat16 for weight in weights):
        for weight in exact:
            weight.data = weight.data.bfloat16()
    try:
        yield
    finally:
        for weight, value in zip(exact, values, strict=True):
            weight.data = value
