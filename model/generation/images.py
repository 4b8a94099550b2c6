"""Drawing images by next-scale prediction, many requests at once, with classifier-free guidance.

Source: section 3 of arXiv:2404.02905. Guidance against the empty prompt is that of arXiv:2207.12598, weaker
at fine scales (after arXiv:2404.07724); guidance against noise is that of the released VARGPT code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.generation.cached_language_model import CachedLanguageModel
from model.generation.sampling import GuidanceMode, SamplingParams, gumbel_noise, sample
from model.scales import scale_offsets
from model.vargpt import Vargpt
from model.visual_decoder import DecoderCache

# Shape legend: G = images drawn now, U = those of them with guidance, R = G + U branches, A = G + rows of the
# null prompt, N = tokens of this scale, D = language model width, C = decoder width, Z = latent channels,
# V = codebook size.

# Small images are decoded together up to so many pixels: four of 32 x 32 take half the time.
DECODED_PIXELS = 4096
SMOOTHING_START, SMOOTHING_DECAY, SMOOTHING_FLOOR = 0.27, 0.95, 0.005


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw.

    Args:
        row: Of the cached language model, whose first `length` positions are what stands before the image
            start.
        null_row: Another row, for the null prompt, where guidance needs it.
    """

    row: int
    length: int
    null_row: int
    params: SamplingParams
    generator: torch.Generator


def draw(
    model: Vargpt,
    language_model: CachedLanguageModel,
    requests: Sequence[ImageRequest],
    on_scale: Callable[[int], None] = lambda k: None,
) -> list[Tensor]:
    """Draw one image for each request; pixels in [0, 1], each (3, H, W).

    The rows of the language model grow by the image start and the image's tokens. `on_scale` is called with
    the index of each scale that is done.
    """
    return _ImageBatch(model, language_model, requests).draw(on_scale)


class _ImageBatch:
    """Images that are drawn together.

    The branches of a step are one conditional branch for each image and, after them, one unconditional branch
    for each image with guidance: first those whose unconditional branch is the null prompt, which has rows of
    the language model, then those whose unconditional branch is noise, which has none.
    """

    def __init__(
        self, model: Vargpt, language_model: CachedLanguageModel, requests: Sequence[ImageRequest]
    ) -> None:
        self.model, self.language_model, self.requests = model, language_model, requests
        modes = [request.params.guidance_mode for request in requests]
        by_prompt = [g for g, mode in enumerate(modes) if mode is GuidanceMode.PROMPT]
        self.by_noise = [g for g, mode in enumerate(modes) if mode is GuidanceMode.NOISE]
        self.guided = [*by_prompt, *self.by_noise]
        null_rows = [requests[g].null_row for g in by_prompt]
        null_prompt = model.config.null_prompt or []
        self.rows = [request.row for request in requests] + null_rows
        self.lengths = [request.length for request in requests] + [len(null_prompt)] * len(null_rows)
        num_positions = max(self.lengths) + 1 + model.config.num_image_tokens
        language_model.reserve(max(self.rows) + 1, num_positions)
        self._read_null_prompt(null_prompt, null_rows)
        self.cache = DecoderCache(model.config.visual_decoder_config.depth)
        # In the released code both branches open with the null start; ours, in training and here, only the
        # null prompt.
        is_null = [mode is GuidanceMode.NOISE for mode in modes] + [True] * len(self.guided)
        self.cond_RC = model.start_condition(len(is_null), torch.tensor(is_null, device=model.device))
        self.codes: list[Tensor] = []
        self.canvas_GZHW: Tensor | float = 0.0

    def _read_null_prompt(self, null_prompt: list[int], null_rows: list[int]) -> None:
        """Feed the null prompt to the language model, once for all rows."""
        if null_prompt and null_rows:
            input_ids = torch.tensor([null_prompt], device=self.model.device)
            self.language_model.step(self.model.embed(input_ids), null_rows[:1], [0])
            self.language_model.copy(null_rows[0], null_rows[1:], len(null_prompt))

    def draw(self, on_scale: Callable[[int], None]) -> list[Tensor]:
        """Predict scale after scale, then decode all images."""
        scales = self.model.config.scales
        tokens_RNC = self.model.visual_decoder.embed_start(self.cond_RC)
        for k in range(len(scales)):
            logits_GNV = self._guide(self._logits(tokens_RNC[: len(self.rows)], k), k)
            self._add_scale(logits_GNV, k)
            on_scale(k)
            if k + 1 < len(scales):
                tokens_GNC = self._next_tokens(k + 1)
                tokens_RNC = torch.cat([tokens_GNC, tokens_GNC[self.guided]])
        return self._pixels()

    def _logits(self, tokens_ANC: Tensor, k: int) -> Tensor:
        """Logits of scale k for all branches, (R, N, V): the figure's way from tokens to logits."""
        num_tokens = tokens_ANC.shape[1]
        embedded_AND = self.model.generation_input_projector(tokens_ANC)
        if k == 0:
            embedded_AND = torch.cat([self._image_starts(), embedded_AND], dim=1)
        hidden_AND = self.language_model.step(embedded_AND, self.rows, self.lengths)
        self.lengths = [length + embedded_AND.shape[1] for length in self.lengths]
        hidden_AND = hidden_AND[:, -num_tokens:]
        noise = [_noise(self.requests[g].generator, hidden_AND) for g in self.by_noise]
        hidden_RND = torch.cat([hidden_AND, *noise])
        return self.model.image_logits(hidden_RND, self.cond_RC, self.cache).float()

    def _image_starts(self) -> Tensor:
        """The embedded image start token of every row, (A, 1, D)."""
        start = self.model.config.image_start_token_id
        return self.model.embed(torch.full((len(self.rows), 1), start, device=self.model.device))

    def _guide(self, logits_RNV: Tensor, k: int) -> Tensor:
        """Classifier-free guidance, uncond + w * (cond - uncond), where there is an unconditional branch,
        (G, N, V).
        """
        cond_GNV, uncond_UNV = logits_RNV[: len(self.requests)], logits_RNV[len(self.requests) :]
        if not self.guided:
            return cond_GNV
        progress = self._progress(k)
        weights = [self.requests[g].params.guidance_weight(progress) for g in self.guided]
        weights_U = logits_RNV.new_tensor(weights)
        guided_U = torch.tensor(self.guided, device=logits_RNV.device)
        guided_UNV = torch.lerp(uncond_UNV, cond_GNV[guided_U], weights_U[:, None, None])
        return cond_GNV.index_copy(0, guided_U, guided_UNV)

    def _progress(self, k: int) -> float:
        """From 0 at the coarsest scale to 1 at the finest."""
        return k / max(len(self.model.config.scales) - 1, 1)

    def _add_scale(self, logits_GNV: Tensor, k: int) -> None:
        """Sample the codes of scale k and add them to the canvas."""
        rules = [request.params.image_rule(self._progress(k)) for request in self.requests]
        codes_GN = sample(logits_GNV, rules, [request.generator for request in self.requests])
        self.codes.append(codes_GN)
        quantizer = self.model.image_tokenizer.quantizer
        vectors_GNZ = quantizer.codebook(codes_GN).float()
        for g, request in enumerate(self.requests):
            if request.params.smoothing:
                vectors_GNZ[g] = self._mixture(logits_GNV[g], request.generator, k)
        self.canvas_GZHW = self.canvas_GZHW + quantizer.upsample(vectors_GNZ, k)

    def _mixture(self, logits_NV: Tensor, generator: torch.Generator, k: int) -> Tensor:
        """Gumbel-softmax mixture of codebook vectors, (N, Z), cooler towards the finest scale."""
        progress = self._progress(k)
        temperature = max(SMOOTHING_START * (1 - SMOOTHING_DECAY * progress), SMOOTHING_FLOOR)
        noise_NV = gumbel_noise(tuple(logits_NV.shape), generator).to(logits_NV.device)
        weights_NV = F.softmax((logits_NV * (1 + progress) + noise_NV) / temperature, dim=-1)
        return weights_NV @ self.model.image_tokenizer.quantizer.codebook.weight.float()

    def _next_tokens(self, k: int) -> Tensor:
        """Embedded tokens of scale k, made from the canvas of the scales before, (G, N, C)."""
        decoder_input_GNZ = self.model.image_tokenizer.quantizer.downsample(self.canvas_GZHW, k)
        first = scale_offsets(self.model.config.scales)[k]
        return self.model.visual_decoder.embed_scales(decoder_input_GNZ, first)

    def _pixels(self) -> list[Tensor]:
        """All images decoded.

        The rounding errors of a convolution depend on how many images it is given, not on which. Groups of
        one size, the last filled up with repetitions, keep an image the same to the bit in every batch.
        """
        tokenizer, pixels = self.model.image_tokenizer, {}
        plain = [g for g, request in enumerate(self.requests) if not request.params.smoothing]
        size = max(1, DECODED_PIXELS // self.model.config.image_size**2)
        for start in range(0, len(plain), size):
            group = plain[start : start + size]
            filled = (group * size)[:size]
            decoded_B3HW = tokenizer.decode([codes_GN[filled] for codes_GN in self.codes])
            pixels |= zip(group, decoded_B3HW, strict=False)
        for g in set(range(len(self.requests))) - set(plain):
            pixels[g] = tokenizer.decode_canvas(self.canvas_GZHW[g : g + 1])[0]
        return [((pixels[g].float() + 1) / 2).clamp(0, 1) for g in range(len(self.requests))]


def _noise(generator: torch.Generator, like_AND: Tensor) -> Tensor:
    """Gaussian hidden states of one branch, (1, N, D), made on the CPU so that a seed means the same
    everywhere.
    """
    return torch.randn(1, *like_AND.shape[1:], generator=generator, device="cpu").to(like_AND)
