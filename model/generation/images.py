"""Drawing: scale by scale through language model and visual decoder, many requests at once.

Source: section 3 of arXiv:2404.02905 and spec section 4.1. Guidance by the empty prompt is that of
arXiv:2207.12598, weaker at fine scales (after arXiv:2404.07724); that by noise is the released checkpoint's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.generation.cached_language_model import CachedLanguageModel
from model.generation.sampling import GuidanceMode, SamplingParams, gumbel_noise, sample_each
from model.scales import scale_offsets
from model.vargpt import Vargpt
from model.visual_decoder import DecoderCache

# Shape legend: G = images drawn now, U = unconditional rows, R = G + U rows, A = G + rows of the null prompt,
# N = tokens of this scale, D = language model width, C = decoder width, Z = latent channels, V = codebook
# size.

# Small pictures are decoded together up to so many pixels: four of 32 x 32 take half the time.
DECODED_PIXELS = 4096
SMOOTHING_START, SMOOTHING_DECAY, SMOOTHING_FLOOR = 0.27, 0.95, 0.005


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw: its row, how many positions stand before the image start, and how to sample it."""

    row: int
    length: int
    null_row: int
    params: SamplingParams
    generator: torch.Generator


def draw(
    model: Vargpt,
    steps: CachedLanguageModel,
    requests: Sequence[ImageRequest],
    on_scale: Callable[[int], None] = lambda k: None,
) -> list[Tensor]:
    """Draw one image for each request; pixels in [0, 1], each (3, H, W).

    The language model's rows grow by the image start and the image's tokens. `on_scale` is told each finished
    scale.
    """
    return _Drawing(model, steps, requests).run(on_scale)


class _Drawing:
    """The state of one batch of images between scales."""

    def __init__(self, model: Vargpt, steps: CachedLanguageModel, requests: Sequence[ImageRequest]) -> None:
        self.model, self.steps, self.requests = model, steps, requests
        modes = [request.params.guidance_mode for request in requests]
        prompted = [g for g, mode in enumerate(modes) if mode is GuidanceMode.PROMPT]
        self.noised = [g for g, mode in enumerate(modes) if mode is GuidanceMode.NOISE]
        self.guided = [*prompted, *self.noised]
        null_rows = [requests[g].null_row for g in prompted]
        null_ids = model.config.null_prompt or []
        self.rows = [s.row for s in requests] + null_rows
        self.lengths = [s.length for s in requests] + [len(null_ids)] * len(null_rows)
        steps.reserve(max(self.rows) + 1, max(self.lengths) + 1 + model.config.num_image_tokens)
        self._read_null_prompt(null_ids, null_rows)
        self.cache = DecoderCache(model.config.visual_decoder_config.depth)
        # The released checkpoint opens both branches with the null start; ours only the empty prompt's.
        opened_null = [mode is GuidanceMode.NOISE for mode in modes] + [True] * len(self.guided)
        nulls_R = torch.tensor(opened_null, device=model.device)
        self.cond_RC = model.start_condition(len(opened_null), nulls_R)
        self.codes: list[Tensor] = []
        self.canvas_GZHW: Tensor | float = 0.0

    def _read_null_prompt(self, null_ids: list[int], null_rows: list[int]) -> None:
        """Read once what all guided images are compared with."""
        if null_ids and null_rows:
            input_ids = torch.tensor([null_ids], device=self.model.device)
            self.steps.step(self.model.embed(input_ids), null_rows[:1], [0])
            self.steps.copy(null_rows[0], null_rows[1:], len(null_ids))

    def run(self, on_scale: Callable[[int], None]) -> list[Tensor]:
        scales = self.model.config.scales
        x_RNC = self.model.visual_decoder.embed_start(self.cond_RC)
        for k in range(len(scales)):
            logits_GNV = self._guide(self._logits(x_RNC[: len(self.rows)], k), k)
            self._add_scale(logits_GNV, k)
            on_scale(k)
            if k + 1 < len(scales):
                x_GNC = self._next_input(k + 1)
                x_RNC = torch.cat([x_GNC, x_GNC[self.guided]])
        return self._pictures()

    def _logits(self, x_ANC: Tensor, k: int) -> Tensor:
        """Logits of this scale for all branches, (R, N, V)."""
        num_tokens = x_ANC.shape[1]
        embedded_AND = self.model.generation_input_projector(x_ANC)
        if k == 0:
            embedded_AND = torch.cat([self._image_starts(), embedded_AND], dim=1)
        hidden_AND = self.steps.step(embedded_AND, self.rows, self.lengths)
        self.lengths = [length + embedded_AND.shape[1] for length in self.lengths]
        hidden_AND = hidden_AND[:, -num_tokens:]
        noise = [self._noise(self.requests[g], hidden_AND) for g in self.noised]
        hidden_RND = torch.cat([hidden_AND, *noise])
        return self.model.image_logits(hidden_RND, self.cond_RC, self.cache).float()

    def _image_starts(self) -> Tensor:
        """The word that stands before the first scale, (A, 1, D)."""
        start = self.model.config.image_start_token_id
        return self.model.embed(torch.full((len(self.rows), 1), start, device=self.model.device))

    @staticmethod
    def _noise(request: ImageRequest, like_AND: Tensor) -> Tensor:
        return torch.randn(1, *like_AND.shape[1:], generator=request.generator, device="cpu").to(like_AND)

    def _guide(self, logits_RNV: Tensor, k: int) -> Tensor:
        """Logits on the line from unconditional to conditional and beyond, (G, N, V)."""
        count = len(self.requests)
        cond_GNV, uncond_UNV = logits_RNV[:count], logits_RNV[count:]
        if not self.guided:
            return cond_GNV
        weights_U = logits_RNV.new_tensor([self._weight(g, k) for g in self.guided])
        guided_U = torch.tensor(self.guided, device=logits_RNV.device)
        pushed_UNV = torch.lerp(uncond_UNV, cond_GNV[guided_U], weights_U[:, None, None])
        return cond_GNV.index_copy(0, guided_U, pushed_UNV)

    def _weight(self, g: int, k: int) -> float:
        """How strongly: 0 is unconditional, 1 conditional."""
        params = self.requests[g].params
        is_noise = params.guidance_mode is GuidanceMode.NOISE
        progress = self._progress(k)
        return 1 + params.guidance * progress if is_noise else params.prompt_guidance(progress)

    def _progress(self, k: int) -> float:
        """From 0 at the coarsest scale to 1 at the finest."""
        return k / max(len(self.model.config.scales) - 1, 1)

    def _add_scale(self, logits_GNV: Tensor, k: int) -> None:
        choices = [request.params.image_choice(self._progress(k)) for request in self.requests]
        codes_GN = sample_each(logits_GNV, choices, [request.generator for request in self.requests])
        self.codes.append(codes_GN)
        quantizer = self.model.image_tokenizer.quantizer
        vectors_GNZ = quantizer.codebook(codes_GN).float()
        for g, request in enumerate(self.requests):
            if request.params.smoothing:
                vectors_GNZ[g] = self._smooth(logits_GNV[g], request, k)
        self.canvas_GZHW = self.canvas_GZHW + quantizer.upsample(vectors_GNZ, k)

    def _smooth(self, logits_NV: Tensor, request: ImageRequest, k: int) -> Tensor:
        """A soft mixture of codebook vectors that hardens towards the finest scale, (N, Z)."""
        progress = self._progress(k)
        heat = max(SMOOTHING_START * (1 - SMOOTHING_DECAY * progress), SMOOTHING_FLOOR)
        noise_NV = gumbel_noise(tuple(logits_NV.shape), request.generator).to(logits_NV.device)
        mixture_NV = F.softmax((logits_NV * (1 + progress) + noise_NV) / heat, dim=-1)
        return mixture_NV @ self.model.image_tokenizer.quantizer.codebook.weight.float()

    def _next_input(self, k: int) -> Tensor:
        seen_GNZ = self.model.image_tokenizer.quantizer.downsample(self.canvas_GZHW, k).flatten(2).mT
        return self.model.visual_decoder.embed_seen(seen_GNZ, scale_offsets(self.model.config.scales)[k])

    def _pictures(self) -> list[Tensor]:
        """Pixels of all images.

        What bits come out of a convolution depends on how many pictures go in, not on which: all groups have
        one size, the last is filled up.
        """
        tokenizer, pixels = self.model.image_tokenizer, {}
        smooth = [g for g, request in enumerate(self.requests) if request.params.smoothing]
        plain = [g for g, request in enumerate(self.requests) if not request.params.smoothing]
        size = max(1, DECODED_PIXELS // self.model.config.image_size**2)
        for start in range(0, len(plain), size):
            group = plain[start : start + size]
            filled = (group * size)[:size]
            decoded_B3HW = tokenizer.decode([codes_GN[filled] for codes_GN in self.codes])
            pixels |= zip(group, decoded_B3HW, strict=False)
        for g in smooth:
            pixels[g] = tokenizer.decode_canvas(self.canvas_GZHW[g : g + 1])[0]
        return [((pixels[g].float() + 1) / 2).clamp(0, 1) for g in range(len(self.requests))]
