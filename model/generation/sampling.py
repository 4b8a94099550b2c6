"""How a reply is sampled: parameters of one request, and the choice of one code or word from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import UserError

# Shape legend: G = requests, R = rows, V = vocabulary or codebook size, K = candidates.

MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = MAX_GUIDANCE = 100
# More than any vocabulary, context or reply holds.
MAX_COUNT = 1_000_000
# Below it logits divided by the temperature would leave float32: such a temperature is greedy.
MIN_TEMPERATURE = 1e-6
MAX_SHOWN = 80
# Of the fields of SamplingParams, least and greatest value.
_REAL_BOUNDS = {
    "text_temperature": (0, MAX_TEMPERATURE),
    "image_temperature": (0, MAX_TEMPERATURE),
    "guidance": (0, MAX_GUIDANCE),
    "fine_guidance": (0, MAX_GUIDANCE),
    "text_top_p": (0, 1),
    "image_top_p": (0, 1),
    "fine_top_p": (0, 1),
    "cooling": (0, 1),
}
_WHOLE_BOUNDS = {
    "text_top_k": (0, MAX_COUNT),
    "image_top_k": (0, MAX_COUNT),
    "max_images": (0, MAX_COUNT),
    "max_new_tokens": (1, MAX_COUNT),
    "seed": (0, MAX_SEED),
}
# How steeply guidance falls along the scales: at the second of four an eighth of the fall is left.
GUIDANCE_FALL = 5
# How far along the scales, from 0 to 1, fine ones begin.
FINE_START = 0.5


class GuidanceMode(StrEnum):
    """What a prompt is compared with: the empty one, the released checkpoint's noise, or nothing."""

    PROMPT = "prompt"
    NOISE = "noise"
    NONE = "none"


class SamplingRule(NamedTuple):
    """How one index is chosen from logits. Temperature 0 is greedy; top-k 0 and top-p 1 keep everything."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """One request's choices. Temperature 0 is greedy; top-k 0 and top-p 1 keep everything.

    With mode `prompt`, logits are uncond + weight * (cond - uncond). The weight is `guidance` at the coarsest
    scale and falls steeply to `fine_guidance` at the finest: scales that choose shapes and are pushed as hard
    draw every digit alike (docs/tiny.md). Weight 1 in both is mode `none`. With mode `noise`, the released
    formula (1 + t) * cond - t * uncond with t = guidance * k / (K - 1). Cooling is the share of the image
    temperature that is gone at the finest scale; in the finer half of the scales top-p is `fine_top_p`.
    Smoothing mixes codebook vectors by Gumbel-softmax for a softer picture (VAR's `more_smooth`), the same
    within rounding whatever is drawn beside it; without, the same to the bit. Raises ValueError naming the
    field.
    """

    text_temperature: float = 0.0
    text_top_k: int = 0
    text_top_p: float = 1.0
    image_temperature: float = 1.0
    image_top_k: int = 0
    image_top_p: float = 0.9
    fine_top_p: float = 0.8
    guidance: float = 6.0
    fine_guidance: float = 1.4
    guidance_mode: GuidanceMode = GuidanceMode.PROMPT
    cooling: float = 0.8
    smoothing: bool = False
    max_new_tokens: int = 256
    max_images: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.guidance_mode not in list(GuidanceMode):
            modes = [mode.value for mode in GuidanceMode]
            raise UserError(f"guidance_mode must be one of {modes}, got {_shown(self.guidance_mode)}")
        object.__setattr__(self, "guidance_mode", GuidanceMode(self.guidance_mode))
        if not isinstance(self.smoothing, bool):
            raise UserError(f"smoothing must be true or false, got {_shown(self.smoothing)}")
        for name, (low, high) in _REAL_BOUNDS.items():
            _check_number(name, getattr(self, name), low, high, (int, float))
            if name.endswith("top_p") and getattr(self, name) == 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, (low, high) in _WHOLE_BOUNDS.items():
            _check_number(name, getattr(self, name), low, high, (int,))

    @property
    def text_choice(self) -> SamplingRule:
        return SamplingRule(self.text_temperature, self.text_top_k, self.text_top_p)

    def image_choice(self, progress: float) -> SamplingRule:
        """How codes are chosen at a scale: `progress` runs from 0, the coarsest, to 1."""
        temperature = self.image_temperature * (1 - self.cooling * progress**2)
        top_p = self.image_top_p if progress < FINE_START else self.fine_top_p
        return SamplingRule(temperature, self.image_top_k, top_p)

    def prompt_guidance(self, progress: float) -> float:
        """The weight of mode `prompt` at a scale."""
        return self.fine_guidance + (self.guidance - self.fine_guidance) * (1 - progress) ** GUIDANCE_FALL


def _check_number(name: str, value: object, low: float, high: float, types: tuple[type, ...]) -> None:
    # Comparing is safe where converting to a float is not: an integer may have any number of digits.
    is_number = isinstance(value, types) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = "a number" if float in types else "a whole number"
        raise UserError(f"{name} must be {kind} from {low} to {high}, got {_shown(value)}")


def _shown(value: object) -> str:
    """A value as an error message shows it; the longest integers cannot even be printed."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def keep_top_k_top_p(logits_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything but the likely choices at minus infinity; the best one always stays."""
    num_kept = min(top_k, logits_RV.shape[-1]) or logits_RV.shape[-1]
    if num_kept == logits_RV.shape[-1] and top_p == 1:
        return logits_RV
    best_RK = logits_RV.topk(num_kept, dim=-1).values
    if top_p < 1:
        share_RK = best_RK.softmax(dim=-1)
        best_RK = best_RK.masked_fill(share_RK.cumsum(dim=-1) - share_RK >= top_p, math.inf)
    return logits_RV.masked_fill(logits_RV < best_RK.amin(dim=-1, keepdim=True), -math.inf)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in float32, drawn on the CPU so that a seed means the same on every device."""
    return torch.empty(shape, device="cpu").exponential_(generator=generator).log_().neg_()


def choose(logits_RV: Tensor, choice: SamplingRule, generator: torch.Generator) -> Tensor:
    """One index for each row, (R,).

    Noise is added to the logits and the largest wins: rounding that differs between batches then moves a
    choice only where two candidates lie within that rounding of each other, about once in a million tokens.
    """
    return sample_each(logits_RV[None], [choice], [generator])[0]


def sample_each(
    logits_GRV: Tensor, choices: Sequence[SamplingRule], generators: Sequence[torch.Generator]
) -> Tensor:
    """As `choose` for G requests, each with a choice and a generator of its own, (G, R)."""
    logits_GRV = logits_GRV.float()
    members: dict[SamplingRule, list[int]] = {}
    for index, choice in enumerate(choices):
        members.setdefault(choice, []).append(index)
    if len(members) == 1:
        return _likeliest(logits_GRV, choices[0], generators)
    chosen_GR = torch.empty(logits_GRV.shape[:2], dtype=torch.long, device=logits_GRV.device)
    for choice, group in members.items():
        chosen_GR[group] = _likeliest(logits_GRV[group], choice, [generators[index] for index in group])
    return chosen_GR


def _likeliest(logits_GRV: Tensor, choice: SamplingRule, generators: Sequence[torch.Generator]) -> Tensor:
    if choice.temperature < MIN_TEMPERATURE:
        return logits_GRV.argmax(dim=-1)
    noise = [gumbel_noise(tuple(logits_GRV.shape[1:]), generator) for generator in generators]
    likely_GRV = keep_top_k_top_p(logits_GRV / choice.temperature, choice.top_k, choice.top_p)
    return (likely_GRV + torch.stack(noise).to(likely_GRV.device)).argmax(dim=-1)
