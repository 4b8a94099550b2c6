"""Models with random weights and prompts of random words: speed does not depend on what they say."""

from dataclasses import replace

import torch

from model.config import preset
from model.generation.generate import Request
from model.generation.sampling import SamplingParams
from model.modeling import VargptForConditionalGeneration

PROMPT_TOKENS = 16
SPECIAL_TOKENS = 16


def random_model(name: str, device: str, dtype: torch.dtype) -> VargptForConditionalGeneration:
    """A preset built where it will run, in its final type: at no time is there a second copy."""
    torch.manual_seed(0)
    config = preset(name)
    text = config.text_config
    config.null_prompt = [text.bos_token_id, text.eos_token_id]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = VargptForConditionalGeneration(config)
            model.visual_decoder.initialize()
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def drawing_requests(model: VargptForConditionalGeneration, count: int) -> list[Request]:
    """Requests for one picture each and, after it, as good as no words."""
    params = SamplingParams(max_new_tokens=1, max_images=1)
    return [
        Request(_prompt(model, seed), params=replace(params, seed=seed), force_image=True)
        for seed in range(count)
    ]


def speaking_requests(model: VargptForConditionalGeneration, count: int, words: int) -> list[Request]:
    """Requests answered in exactly so many words, given a model that cannot stop (see `never_stopping`)."""
    params = SamplingParams(max_new_tokens=words, max_images=0)
    return [Request(_prompt(model, seed), params=params) for seed in range(count)]


@torch.no_grad()
def never_stopping(model: VargptForConditionalGeneration) -> VargptForConditionalGeneration:
    """The same model, made unable to say the token that ends a reply: all its weights in the head are zero,
    which never beats the best of many random ones.
    """
    model.language_model.lm_head.weight[model.config.text_config.eos_token_id] = 0
    return model


def _prompt(model: VargptForConditionalGeneration, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # The ids at both ends of the vocabulary are special in one preset or the other.
    high = min(model.config.text_config.vocab_size, 32000)
    return torch.randint(SPECIAL_TOKENS, high, (PROMPT_TOKENS,), generator=generator)
