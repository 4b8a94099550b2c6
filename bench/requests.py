"""What is measured: models with random weights, requests with random tokens; neither affects the speed."""

from dataclasses import replace

import torch
from torch import Tensor

from model.config import preset
from model.generation.generate import Request
from model.generation.sampling import SamplingParams
from model.modeling import VargptForConditionalGeneration

PROMPT_TOKENS = 16
SPECIAL_TOKENS = 16


def random_model(name: str, device: str, dtype: torch.dtype) -> VargptForConditionalGeneration:
    """A preset with random weights, made on the device in this type, so that there is never a second copy."""
    torch.manual_seed(0)
    config = preset(name)
    text = config.text_config
    config.null_prompt = [text.bos_token_id, text.eos_token_id]
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = VargptForConditionalGeneration(config)
            model.visual_decoder.initialize()
    finally:
        torch.set_default_dtype(default)
    # As it is loaded, whatever the type of the rest.
    model.image_tokenizer.float()
    return model.eval()


def image_requests(model: VargptForConditionalGeneration, count: int) -> list[Request]:
    """Requests for one image each, and one token of text after it at most."""
    params = SamplingParams(max_new_tokens=1, max_images=1)
    return [
        Request(_prompt(model, seed), params=replace(params, seed=seed), force_image=True)
        for seed in range(count)
    ]


def text_requests(model: VargptForConditionalGeneration, count: int, num_tokens: int) -> list[Request]:
    """Requests for text of exactly so many tokens, given a model that cannot stop (`without_end_token`)."""
    params = SamplingParams(max_new_tokens=num_tokens, max_images=0)
    return [Request(_prompt(model, seed), params=params) for seed in range(count)]


@torch.no_grad()
def without_end_token(model: VargptForConditionalGeneration) -> VargptForConditionalGeneration:
    """The same model, made unable to end a reply: the end token's row of the head is set to zero.

    Its logit is then 0, which is never the largest of many random ones.
    """
    model.language_model.lm_head.weight[model.config.text_config.eos_token_id] = 0
    return model


def _prompt(model: VargptForConditionalGeneration, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Special tokens are the first ids of `tiny` and the last of `7b`.
    high = min(model.config.text_config.vocab_size, 32000)
    return torch.randint(SPECIAL_TOKENS, high, (PROMPT_TOKENS,), generator=generator)
