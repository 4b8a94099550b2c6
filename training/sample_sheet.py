"""A sheet of drawings of one fixed set of prompts, so that a stage's progress can be seen."""

import torch
from PIL import Image

from model.generation import generate
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.sampling import SamplingParams
from model.transforms import picture
from training.scenes import BACKGROUNDS, COLORS, DIGITS

ENLARGED = 2


@torch.no_grad()
def sample_sheet(model: VargptForConditionalGeneration, processor: VargptProcessor) -> Image.Image:
    """One drawing for every digit, side by side; the same requests and seeds each time."""
    colors, grounds = list(COLORS), list(BACKGROUNDS)
    requests = [
        processor.request(
            [
                {
                    "role": "user",
                    "content": f"Draw a {colors[d % len(colors)]} {name} on {grounds[d % len(grounds)]}.",
                }
            ],
            SamplingParams(seed=d, max_new_tokens=1),
            force_image=True,
        )
        for d, name in enumerate(DIGITS)
    ]
    modes = {module: module.training for module in model.modules()}
    replies = generate(model.eval(), requests)
    for module, was_training in modes.items():
        module.training = was_training
    side = processor.drawn_size
    sheet = Image.new("RGB", (side * len(requests), side), "white")
    for place, reply in enumerate(replies):
        for pixels in reply.images[:1]:
            sheet.paste(picture(pixels), (place * side, 0))
    return sheet.resize((sheet.width * ENLARGED, sheet.height * ENLARGED), Image.Resampling.NEAREST)
