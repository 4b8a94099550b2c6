"""Replies to requests: text and images in any order, many requests in one batch, each with its own seed.

Knows no file and no clock. What a request gets does not depend on what else is in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.errors import UserError
from model.generation.cached_language_model import CachedLanguageModel
from model.generation.images import ImageRequest, draw
from model.generation.sampling import GuidanceMode, SamplingParams, sample
from model.vargpt import Vargpt

# Shape legend: R = requests that get a token in this step, T = positions, D = language model width,
# V = vocabulary size, I = input images, G = images drawn in earlier turns, L = image tokens.

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A prompt to answer. UserError unless it has token ids.

    Args:
        input_ids: (T,), with a token for every position of every image.
        pixel_values: Its input images, normalised as for CLIP, (I, 3, H, W).
        force_image: The reply starts with an image, if `max_images` allows one.
        generation_pixel_values: Images that were drawn in earlier turns, in [-1, 1], (G, 3, H, W).
    """

    input_ids: Tensor
    pixel_values: Tensor | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    force_image: bool = False
    generation_pixel_values: Tensor | None = None

    def __post_init__(self) -> None:
        ids = self.input_ids
        if ids.dim() != 1 or not len(ids) or ids.is_floating_point():
            raise UserError(
                f"input_ids must be at least one token id, (T,), got {tuple(ids.shape)} of {ids.dtype}"
            )


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    Args:
        token_ids: New tokens; of an image only its start and its end.
        images: In their order, pixels in [0, 1], (3, H, W), on the model's device.
    """

    token_ids: list[int]
    images: list[Tensor]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_image_tokens: int


@dataclass(frozen=True)
class Event:
    """Progress of one request: it has a new token, has finished a scale of an image, or a whole image."""

    request_index: int
    type: Literal["token", "scale", "image"]
    token_id: int | None = None
    scale: int | None = None
    image: Tensor | None = None


@torch.no_grad()
def generate(
    model: Vargpt,
    requests: Sequence[Request],
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[int], bool] | None = None,
) -> list[Reply]:
    """Answer all requests together.

    UserError when a prompt has unknown token ids, does not fit the context, or has not as many images as
    places for them.

    Args:
        on_event: Called with every token, scale and image as it is made.
        should_stop: Called between steps with the index of a request; True ends it as `cancelled`.
    """
    on_event, should_stop = on_event or (lambda event: None), should_stop or (lambda index: False)
    return _TextAndImageBatch(model, requests, on_event, should_stop).run()


class _RequestState:
    """One request and how far its reply is.

    `length` positions of its row are in the cache; `next_token` is chosen, but not yet fed to the language
    model.
    """

    def __init__(self, index: int, request: Request) -> None:
        self.index, self.request, self.params = index, request, request.params
        self.generator = torch.Generator().manual_seed(request.params.seed)
        self.token_ids: list[int] = []
        self.images: list[Tensor] = []
        self.length = 0
        self.num_text_tokens = 0
        self.next_token: int | None = None
        self.finish_reason: FinishReason | None = None

    @property
    def must_draw(self) -> bool:
        """Whether the next token is the image start, whatever the model says."""
        return self.request.force_image and not self.token_ids and self.params.max_images > 0

    @property
    def may_draw(self) -> bool:
        """Whether the reply may hold another image."""
        return len(self.images) < self.params.max_images

    def reply(self, num_image_tokens: int) -> Reply:
        return Reply(
            self.token_ids,
            self.images,
            self.finish_reason or "stop",
            num_prompt_tokens=len(self.request.input_ids),
            num_image_tokens=len(self.images) * num_image_tokens,
        )


class _TextAndImageBatch:
    """Requests answered together: they write text first; then all that wait for an image draw together."""

    def __init__(
        self,
        model: Vargpt,
        requests: Sequence[Request],
        on_event: Callable[[Event], None],
        should_stop: Callable[[int], bool],
    ) -> None:
        self.model, self.config = model, model.config
        self.on_event, self.should_stop = on_event, should_stop
        self.context = model.config.text_config.max_position_embeddings
        for request in requests:
            self._check_prompt(request.input_ids)
        self.states = [_RequestState(index, request) for index, request in enumerate(requests)]
        # Tokens that only the processor and this class write.
        unsampled = [
            self.config.image_token_id,
            self.config.image_end_token_id,
            self.config.image_pad_token_id,
        ]
        self.unsampled = torch.tensor(unsampled, device=model.device)
        self.language_model = CachedLanguageModel(model.language_model)

    def _check_prompt(self, input_ids: Tensor) -> None:
        length, vocab_size = len(input_ids), self.config.text_config.vocab_size
        if length >= self.context:
            raise UserError(f"prompt has {length} tokens; the context holds {self.context}, reply included")
        if input_ids.min() < 0 or input_ids.max() >= vocab_size:
            raise UserError(
                f"prompt has token ids outside of the vocabulary, which are 0 to {vocab_size - 1}"
            )

    def run(self) -> list[Reply]:
        if self.states:
            self._reserve_cache()
            self._read_prompts()
        while active := [state for state in self.states if not self._is_finished(state)]:
            start = self.config.image_start_token_id
            if writing := [state for state in active if state.next_token != start]:
                self._step_text(writing)
            else:
                self._draw_images(active)
        return [state.reply(self.config.num_image_tokens) for state in self.states]

    def _is_finished(self, state: _RequestState) -> bool:
        if state.finish_reason is None and self.should_stop(state.index):
            state.finish_reason = "cancelled"
        return state.finish_reason is not None

    def _reserve_cache(self) -> None:
        """Reserve a row for each request, and one for its null prompt where one is sure to be needed."""
        longest = max(len(state.request.input_ids) for state in self.states)
        needs_null_rows = any(
            state.request.force_image and state.params.guidance_mode is GuidanceMode.PROMPT
            for state in self.states
        )
        num_positions = min(self.context, longest + 2 * self.config.num_image_tokens)
        self.language_model.reserve((1 + needs_null_rows) * len(self.states), num_positions)

    def _read_prompts(self) -> None:
        """Feed all prompts to the language model at once and choose every request's first token."""
        embedded = [self._embed_prompt(state.request) for state in self.states]
        for state, embedded_TD in zip(self.states, embedded, strict=True):
            state.length = len(embedded_TD)
        embedded_RTD = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
        rows = range(len(self.states))
        hidden_RTD = self.language_model.step(embedded_RTD, rows, [0] * len(self.states))
        last = [state.length - 1 for state in self.states]
        self._choose_next(self.states, hidden_RTD[rows, last])

    def _embed_prompt(self, request: Request) -> Tensor:
        device, dtype = self.model.device, self.model.dtype
        pixels, drawn = request.pixel_values, request.generation_pixel_values
        image_tokens_GLC = None
        if drawn is not None and len(drawn):
            codes = self.model.image_tokenizer.encode(drawn.to(device))
            decoder_input_GMZ = self.model.image_tokenizer.quantizer.decoder_input(codes)
            image_tokens_GLC, _ = self.model.embed_images(decoder_input_GMZ)
        pixels = None if pixels is None else pixels.to(device, dtype)
        return self.model.embed(request.input_ids.to(device)[None], pixels, image_tokens_GLC)[0]

    def _step_text(self, states: list[_RequestState]) -> None:
        """Feed the next token of each request and choose the one after it."""
        input_ids = torch.tensor([[state.next_token] for state in states], device=self.model.device)
        embedded_R1D = self.model.language_model.get_input_embeddings()(input_ids)
        needed = max(state.length for state in states) + 1
        if needed > self.language_model.num_positions:  # doubled, so that copying stays rare
            self.language_model.reserve(len(self.states), min(self.context, 2 * needed))
        rows, lengths = [state.index for state in states], [state.length for state in states]
        last_RD = self.language_model.step(embedded_R1D, rows, lengths)[:, -1]
        for state in states:
            state.length += 1
        self._choose_next(states, last_RD)

    def _choose_next(self, states: list[_RequestState], last_RD: Tensor) -> None:
        """Choose the next token of each request, given the hidden state of its last position."""
        # An image that must be drawn uses up no random numbers, whatever else is in the batch.
        sampled = [row for row, state in enumerate(states) if not state.must_draw]
        tokens = self._sample_tokens([states[row] for row in sampled], last_RD[sampled])
        chosen = dict(zip(sampled, tokens, strict=True))
        for row, state in enumerate(states):
            self._accept(state, chosen.get(row, self.config.image_start_token_id))

    def _sample_tokens(self, states: list[_RequestState], last_RD: Tensor) -> list[int]:
        if not states:
            return []
        logits_RV = self.model.text_logits(last_RD).float()
        logits_RV.index_fill_(1, self.unsampled, float("-inf"))
        if no_image := [row for row, state in enumerate(states) if not state.may_draw]:
            logits_RV[no_image, self.config.image_start_token_id] = float("-inf")
        rules = [state.params.text_rule for state in states]
        return sample(logits_RV[:, None], rules, [state.generator for state in states])[:, 0].tolist()

    def _accept(self, state: _RequestState, token: int) -> None:
        """Finish the reply at this token, or at a limit that it would pass; else append it."""
        is_image = token == self.config.image_start_token_id
        if token == self.config.text_config.eos_token_id:
            state.finish_reason = "stop"
            return
        needed = state.length + 1 + (self.config.num_image_tokens + 1 if is_image else 0)
        if state.num_text_tokens >= state.params.max_new_tokens or needed > self.context:
            state.finish_reason = "length"
            return
        state.num_text_tokens += not is_image
        self._append(state, token)

    def _append(self, state: _RequestState, token: int) -> None:
        state.next_token = token
        state.token_ids.append(token)
        self.on_event(Event(state.index, "token", token_id=token))

    def _draw_images(self, states: list[_RequestState]) -> None:
        """Draw an image for each request; the image end is its next token."""
        num_rows = len(self.states)
        requests = [
            ImageRequest(state.index, state.length, num_rows + state.index, state.params, state.generator)
            for state in states
        ]
        images = draw(self.model, self.language_model, requests, lambda k: self._report_scale(states, k))
        for state, image in zip(states, images, strict=True):
            state.length += 1 + self.config.num_image_tokens
            state.images.append(image)
            self.on_event(Event(state.index, "image", image=image))
            self._append(state, self.config.image_end_token_id)

    def _report_scale(self, states: list[_RequestState], k: int) -> None:
        for state in states:
            self.on_event(Event(state.index, "scale", scale=k))
