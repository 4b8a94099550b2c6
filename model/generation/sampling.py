"""Sampling: the parameters of a request, and choosing tokens and codes from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import UserError

# Shape legend: G = requests, R = rows of logits, V = vocabulary or codebook size, K = candidates.

MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = MAX_GUIDANCE = 100
# More than any vocabulary, context or reply holds.
MAX_COUNT = 1_000_000
# Below it logits divided by the temperature would leave float32; sampling is greedy there.
MIN_TEMPERATURE = 1e-6
# Exponent with which guidance falls along the scales; at the second of four, an eighth of the fall is left.
GUIDANCE_FALL = 5
# Where fine scales begin, on the way from 0, the coarsest, to 1, the finest.
FINE_START = 0.5
MAX_SHOWN = 80
# Least and greatest value of the fields of SamplingParams.
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


class GuidanceMode(StrEnum):
    """What the unconditional branch of classifier-free guidance is.

    `prompt`: the empty prompt. `noise`: Gaussian hidden states, as in the released code. `none`: no guidance.
    """

    PROMPT = "prompt"
    NOISE = "noise"
    NONE = "none"


class SamplingRule(NamedTuple):
    """How an index is sampled from logits: temperature (0 is greedy), top-k (0 is all), top-p (1 is all)."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the reply to one request is sampled. UserError that names the field for a value out of bounds.

    Progress below is the place of a scale between the coarsest, 0, and the finest, 1.

    Args:
        text_temperature, image_temperature: 0 is greedy.
        text_top_k, image_top_k: 0 keeps all candidates.
        text_top_p, image_top_p: 1 keeps all candidates.
        fine_top_p: Top-p of codes in the finer half of the scales.
        guidance: In mode `prompt`, weight w of uncond + w * (cond - uncond) at the coarsest scale, from where
            it falls steeply to `fine_guidance`: scales that decide shapes and are pushed as hard as the first
            draw every digit alike (docs/tiny.md). In mode `noise`, logits are (1 + t) * cond - t * uncond
            with t = guidance * progress, as in the released code.
        fine_guidance: Weight at the finest scale in mode `prompt`. 1 in both is as mode `none`.
        cooling: Share of the image temperature that is gone at the finest scale.
        smoothing: Add Gumbel-softmax mixtures of codebook vectors to the canvas instead of the sampled ones
            (`more_smooth` in VAR). Images are then the same within rounding whatever else is in the batch,
            and the same to the bit without smoothing.
        max_new_tokens: Of text; images do not count.
        max_images: In one reply.
        seed: The same seed, request and model give the same reply.
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
    def text_rule(self) -> SamplingRule:
        """How words are sampled."""
        return SamplingRule(self.text_temperature, self.text_top_k, self.text_top_p)

    def image_rule(self, progress: float) -> SamplingRule:
        """How the codes of a scale are sampled."""
        temperature = self.image_temperature * (1 - self.cooling * progress**2)
        top_p = self.image_top_p if progress < FINE_START else self.fine_top_p
        return SamplingRule(temperature, self.image_top_k, top_p)

    def guidance_weight(self, progress: float) -> float:
        """The weight w of uncond + w * (cond - uncond) at a scale: 0 is unconditional, 1 conditional."""
        if self.guidance_mode is GuidanceMode.NONE:
            return 1.0
        if self.guidance_mode is GuidanceMode.NOISE:
            return 1 + self.guidance * progress
        return self.fine_guidance + (self.guidance - self.fine_guidance) * (1 - progress) ** GUIDANCE_FALL


def _check_number(name: str, value: object, low: float, high: float, types: tuple[type, ...]) -> None:
    # Comparing is safe where converting to a float is not: an integer may have any number of digits.
    is_number = isinstance(value, types) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = "a number" if float in types else "a whole number"
        raise UserError(f"{name} must be {kind} from {low} to {high}, got {_shown(value)}")


def _shown(value: object) -> str:
    """A value as an error message shows it, in short; the longest integers cannot even be printed."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def keep_top_k_top_p(logits_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with minus infinity at all but the likeliest candidates; the likeliest always stays."""
    num_candidates = min(top_k, logits_RV.shape[-1]) or logits_RV.shape[-1]
    if num_candidates == logits_RV.shape[-1] and top_p == 1:
        return logits_RV
    likeliest_RK = logits_RV.topk(num_candidates, dim=-1).values
    if top_p < 1:
        probability_RK = likeliest_RK.softmax(dim=-1)
        before_RK = probability_RK.cumsum(dim=-1) - probability_RK
        likeliest_RK = likeliest_RK.masked_fill(before_RK >= top_p, math.inf)
    return logits_RV.masked_fill(logits_RV < likeliest_RK.amin(dim=-1, keepdim=True), -math.inf)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in float32, made on the CPU so that a seed means the same on every device."""
    return torch.empty(shape, device="cpu").exponential_(generator=generator).log_().neg_()


def sample(
    logits_GRV: Tensor, rules: Sequence[SamplingRule], generators: Sequence[torch.Generator]
) -> Tensor:
    """One index for each row of logits, (G, R), with a rule and a generator for each request.

    By the Gumbel-max trick: noise is added to the logits and the largest wins. Rounding errors, which differ
    with the size of the batch, then change a choice only where two candidates lie within them, about once in
    a million tokens.
    """
    logits_GRV = logits_GRV.float()
    members: dict[SamplingRule, list[int]] = {}
    for index, rule in enumerate(rules):
        members.setdefault(rule, []).append(index)
    if len(members) == 1:
        return _sample_by(rules[0], logits_GRV, generators)
    chosen_GR = torch.empty(logits_GRV.shape[:2], dtype=torch.long, device=logits_GRV.device)
    for rule, group in members.items():
        chosen_GR[group] = _sample_by(rule, logits_GRV[group], [generators[index] for index in group])
    return chosen_GR


def _sample_by(rule: SamplingRule, logits_GRV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    if rule.temperature < MIN_TEMPERATURE:
        return logits_GRV.argmax(dim=-1)
    noise = [gumbel_noise(tuple(logits_GRV.shape[1:]), generator) for generator in generators]
    likely_GRV = keep_top_k_top_p(logits_GRV / rule.temperature, rule.top_k, rule.top_p)
    return (likely_GRV + torch.stack(noise).to(likely_GRV.device)).argmax(dim=-1)
