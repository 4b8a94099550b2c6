"""How a reply is sampled: parameters of one request, and the choice of one code or word from logits."""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

# Shape legend: R = rows, V = vocabulary or codebook size.

MAX_SEED = 2**63 - 1


class GuidanceMode(StrEnum):
    """What the guided branch is compared with: the empty prompt, the released checkpoint's noise, or
    nothing.
    """

    PROMPT = "prompt"
    NOISE = "noise"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """One request's choices. Temperature 0 is greedy; top-k 0 and top-p 1 keep everything.

    With mode `prompt`, logits are uncond + guidance * (cond - uncond) at every scale; guidance 1 is none.
    With mode
    `noise`, the released formula (1 + t) * cond - t * uncond with t = guidance * k / (K - 1). Smoothing
    mixes codebook
    vectors by Gumbel-softmax for a softer picture (VAR's `more_smooth`). Raises ValueError naming the field.
    """

    text_temperature: float = 0.0
    text_top_k: int = 0
    text_top_p: float = 1.0
    image_temperature: float = 1.0
    image_top_k: int = 100
    image_top_p: float = 0.95
    guidance: float = 2.0
    guidance_mode: GuidanceMode = GuidanceMode.PROMPT
    smoothing: bool = False
    max_new_tokens: int = 256
    max_images: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.guidance_mode not in list(GuidanceMode):
            modes = [mode.value for mode in GuidanceMode]
            raise ValueError(f"guidance_mode must be one of {modes}, got {self.guidance_mode!r}")
        object.__setattr__(self, "guidance_mode", GuidanceMode(self.guidance_mode))
        for name in ("text_temperature", "image_temperature", "guidance"):
            _check(name, getattr(self, name), low=0, high=math.inf)
        for name in ("text_top_p", "image_top_p"):
            _check(name, getattr(self, name), low=0, high=1)
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("text_top_k", "image_top_k", "max_images"):
            _check(name, getattr(self, name), low=0, high=math.inf)
        _check("max_new_tokens", self.max_new_tokens, low=1, high=math.inf)
        _check("seed", self.seed, low=0, high=MAX_SEED)


def _check(name: str, value: float, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        reach = f"from {low} to {high}" if math.isfinite(high) else f"finite and at least {low}"
        raise ValueError(f"{name} must be {reach}, got {value!r}")


def keep_likely(logits_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything but the likely choices at minus infinity; the best one always stays."""
    if 0 < top_k < logits_RV.shape[-1]:
        least_R1 = logits_RV.topk(top_k, dim=-1).values[..., -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < least_R1, -math.inf)
    if top_p < 1:
        sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True)
        before_RV = sorted_RV.softmax(dim=-1).cumsum(dim=-1) - sorted_RV.softmax(dim=-1)
        dropped_RV = torch.zeros_like(logits_RV, dtype=torch.bool).scatter(-1, order_RV, before_RV >= top_p)
        logits_RV = logits_RV.masked_fill(dropped_RV, -math.inf)
    return logits_RV


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in float32, drawn on the CPU so that a seed means the same on every device."""
    return -torch.empty(shape).exponential_(generator=generator).log()


def choose(
    logits_RV: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> Tensor:
    """One index for each row, (R,).

    Noise is added to the logits and the largest wins: rounding that differs between batches then moves a
    choice only where two candidates lie within that rounding of each other, about once in a million tokens.
    """
    logits_RV = logits_RV.float()
    if temperature == 0:
        return logits_RV.argmax(dim=-1)
    noise_RV = gumbel_noise(tuple(logits_RV.shape), generator).to(logits_RV.device)
    return (keep_likely(logits_RV / temperature, top_k, top_p) + noise_RV).argmax(dim=-1)
