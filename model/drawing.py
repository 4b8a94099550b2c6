"""Drawing: scale by scale through language model and visual decoder, many requests at once.

Source: section 3 of arXiv:2404.02905 and spec section 4.1; the prompt guidance is ours, the noise guidance
the released checkpoint's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cache import SequenceStore, step_mask
from model.sampling import GuidanceMode, SamplingParams, choose, gumbel_noise
from model.scales import scale_offsets
from model.vargpt import Vargpt
from model.visual_decoder import DecoderCache

# Shape legend: G = images drawn now, U = unconditional rows, R = G + U rows, A = G + rows of the null
# prompt, N = tokens
# of this scale, D = language model width, C = decoder width, Z = latent channels, V = codebook size.

SMOOTHING_START, SMOOTHING_DECAY, SMOOTHING_FLOOR = 0.27, 0.95, 0.005


@dataclass(frozen=True)
class Sketch:
    """One image to draw: where its sequence lies in the store, and how to sample it."""

    row: int
    length: int
    null_row: int
    params: SamplingParams
    generator: torch.Generator


def stepped(
    model: Vargpt,
    store: SequenceStore,
    embedded_RTD: Tensor,
    rows: Sequence[int],
    lengths: Sequence[int],
    room: int,
) -> Tensor:
    """Append embedded positions to rows of the store; their last hidden states, (R, T, D)."""
    device = embedded_RTD.device
    steps_T = torch.arange(embedded_RTD.shape[1], device=device)
    positions_RT = torch.tensor(list(lengths), device=device)[:, None] + steps_T
    view = store.view(torch.tensor(list(rows), device=device), positions_RT, room)
    return model.language_model.states(
        embedded_RTD,
        attention_mask=step_mask(positions_RT),
        position_ids=positions_RT,
        past_key_values=view,
        use_cache=True,
    )


def draw(
    model: Vargpt,
    store: SequenceStore,
    sketches: Sequence[Sketch],
    room: int,
    on_scale: Callable[[int], None] = lambda k: None,
) -> list[Tensor]:
    """Draw one image for each sketch; pixels in [0, 1], each (3, H, W).

    The language model's rows grow by the image's tokens. `on_scale` is told each finished scale.
    """
    null_prefix = _read_null_prompts(model, store, sketches, room)
    return _Drawing(model, store, sketches, room, null_prefix).run(on_scale)


def _read_null_prompts(model: Vargpt, store: SequenceStore, sketches: Sequence[Sketch], room: int) -> int:
    """Write the null prompt and the image start into the rows that guidance needs; its length."""
    rows = [sketch.null_row for sketch in sketches if sketch.params.guidance_mode is GuidanceMode.PROMPT]
    ids = [*(model.config.null_prompt or []), model.config.image_start_token_id]
    if rows:
        input_ids = torch.tensor([ids] * len(rows), device=model.device)
        stepped(model, store, model.embed(input_ids), rows, [0] * len(rows), max(room, len(ids)))
    return len(ids)


class _Drawing:
    """The state of one batch of images between scales."""

    def __init__(
        self, model: Vargpt, store: SequenceStore, sketches: Sequence[Sketch], room: int, null_prefix: int
    ) -> None:
        self.model, self.store, self.room = model, store, room
        modes = [sketch.params.guidance_mode for sketch in sketches]
        self.sketches = sketches
        prompted = [g for g, mode in enumerate(modes) if mode is GuidanceMode.PROMPT]
        noised = [g for g, mode in enumerate(modes) if mode is GuidanceMode.NOISE]
        self.guided, self.num_prompted, self.noised = [*prompted, *noised], len(prompted), noised
        self.rows = [s.row for s in sketches] + [sketches[g].null_row for g in prompted]
        self.lengths = [s.length for s in sketches] + [null_prefix] * len(prompted)
        self.cache = DecoderCache(model.config.visual_decoder_config.depth)
        # The released checkpoint opens both branches with the null start; ours only the empty prompt's.
        opened_null = [mode is GuidanceMode.NOISE for mode in modes] + [True] * len(self.guided)
        nulls_R = torch.tensor(opened_null, device=model.device)
        self.cond_RC = model.start_condition(len(opened_null), nulls_R)
        self.codes: list[Tensor] = []
        self.canvas_GZHW: Tensor | float = 0.0

    def run(self, on_scale: Callable[[int], None]) -> list[Tensor]:
        scales = self.model.config.scales
        language_rows = len(self.rows)
        x_RNC = self.model.visual_decoder.embed_start(self.cond_RC)
        for k in range(len(scales)):
            logits_GNV = self._guide(self._logits(x_RNC[:language_rows]), k)
            self._add_scale(logits_GNV, k)
            on_scale(k)
            if k + 1 < len(scales):
                x_GNC = self._next_input(k + 1)
                x_RNC = torch.cat([x_GNC, x_GNC[self.guided]])
        return [self._picture(g) for g in range(len(self.sketches))]

    def _logits(self, x_ANC: Tensor) -> Tensor:
        """Logits of this scale for all branches, (R, N, V)."""
        embedded_AND = self.model.generation_input_projector(x_ANC)
        hidden_AND = stepped(self.model, self.store, embedded_AND, self.rows, self.lengths, self.room)
        self.lengths = [length + x_ANC.shape[1] for length in self.lengths]
        noise = [self._noise(self.sketches[g], hidden_AND) for g in self.noised]
        hidden_RND = torch.cat([hidden_AND, *noise])
        return self.model.image_logits(hidden_RND, self.cond_RC, self.cache).float()

    @staticmethod
    def _noise(sketch: Sketch, like_AND: Tensor) -> Tensor:
        return torch.randn(1, *like_AND.shape[1:], generator=sketch.generator).to(like_AND)

    def _guide(self, logits_RNV: Tensor, k: int) -> Tensor:
        """Push conditional logits away from the unconditional ones, (G, N, V)."""
        count, last = len(self.sketches), max(len(self.model.config.scales) - 1, 1)
        cond_GNV, uncond_UNV = logits_RNV[:count].clone(), logits_RNV[count:]
        for uncond_NV, g in zip(uncond_UNV, self.guided, strict=True):
            params = self.sketches[g].params
            is_noise = params.guidance_mode is GuidanceMode.NOISE
            weight = 1 + params.guidance * k / last if is_noise else params.guidance
            cond_GNV[g] = uncond_NV + weight * (cond_GNV[g] - uncond_NV)
        return cond_GNV

    def _add_scale(self, logits_GNV: Tensor, k: int) -> None:
        codes_GN = torch.stack([self._choose(logits_GNV[g], s) for g, s in enumerate(self.sketches)])
        self.codes.append(codes_GN)
        quantizer = self.model.image_tokenizer.quantizer
        vectors_GNZ = quantizer.codebook(codes_GN)
        for g, sketch in enumerate(self.sketches):
            if sketch.params.smoothing:
                vectors_GNZ[g] = self._smooth(logits_GNV[g], sketch, k)
        self.canvas_GZHW = self.canvas_GZHW + quantizer.upsample(vectors_GNZ, k)

    @staticmethod
    def _choose(logits_NV: Tensor, sketch: Sketch) -> Tensor:
        params = sketch.params
        return choose(
            logits_NV, params.image_temperature, params.image_top_k, params.image_top_p, sketch.generator
        )

    def _smooth(self, logits_NV: Tensor, sketch: Sketch, k: int) -> Tensor:
        """A soft mixture of codebook vectors that hardens towards the finest scale, (N, Z)."""
        progress = k / max(len(self.model.config.scales) - 1, 1)
        heat = max(SMOOTHING_START * (1 - SMOOTHING_DECAY * progress), SMOOTHING_FLOOR)
        noise_NV = gumbel_noise(tuple(logits_NV.shape), sketch.generator).to(logits_NV.device)
        mixture_NV = F.softmax((logits_NV * (1 + progress) + noise_NV) / heat, dim=-1)
        codebook_VZ = self.model.image_tokenizer.quantizer.codebook.weight
        return mixture_NV.to(codebook_VZ.dtype) @ codebook_VZ

    def _next_input(self, k: int) -> Tensor:
        seen_GNZ = self.model.image_tokenizer.quantizer.downsample(self.canvas_GZHW, k).flatten(2).mT
        return self.model.visual_decoder.embed_seen(seen_GNZ, scale_offsets(self.model.config.scales)[k])

    def _picture(self, g: int) -> Tensor:
        """Pixels of one image, decoded alone: the same bits whatever else was drawn beside it."""
        tokenizer = self.model.image_tokenizer
        if self.sketches[g].params.smoothing:
            pixels_13HW = tokenizer.decode_canvas(self.canvas_GZHW[g : g + 1])
        else:
            pixels_13HW = tokenizer.decode([codes_GN[g : g + 1] for codes_GN in self.codes])
        return ((pixels_13HW[0].float() + 1) / 2).clamp(0, 1)
