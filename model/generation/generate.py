"""Replies: any mix of prompts in one call, text and pictures in any order, each request with its own seed.

Pure: knows no device, file or clock. A request's result does not depend on what else is in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.errors import UserError
from model.generation.cached_language_model import CachedLanguageModel
from model.generation.images import ImageRequest, draw
from model.generation.sampling import GuidanceMode, SamplingParams, sample_each
from model.vargpt import Vargpt

# Shape legend: R = rows stepped now, T = positions, D = language model width, V = vocabulary.

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A prompt as token ids (T,), its input images, and images drawn in earlier turns; pixels as the
    processor makes.
    """

    input_ids: Tensor
    pixel_values: Tensor | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    force_image: bool = False
    generation_pixel_values: Tensor | None = None


@dataclass(frozen=True)
class Reply:
    """New tokens (an image is its start and end token) and the images in their order, (3, H, W) in [0, 1]."""

    token_ids: list[int]
    images: list[Tensor]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_image_tokens: int


@dataclass(frozen=True)
class Event:
    """Something that request number `request` just got: a token, a finished scale, or a finished image."""

    request: int
    kind: Literal["token", "scale", "image"]
    token_id: int | None = None
    scale: int | None = None
    image: Tensor | None = None


class _Run:
    """One request on its way: what it has said, and the token that comes next."""

    def __init__(self, index: int, request: Request) -> None:
        self.index, self.request, self.params = index, request, request.params
        self.generator = torch.Generator().manual_seed(request.params.seed)
        self.token_ids: list[int] = []
        self.images: list[Tensor] = []
        self.length = 0
        self.num_words = 0
        self.next_token: int | None = None
        self.finish_reason: FinishReason | None = None

    def reply(self, num_image_tokens: int) -> Reply:
        prompt = len(self.request.input_ids)
        drawn = len(self.images) * num_image_tokens
        return Reply(self.token_ids, self.images, self.finish_reason or "stop", prompt, drawn)


@torch.no_grad()
def generate(
    model: Vargpt,
    requests: Sequence[Request],
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[int], bool] | None = None,
) -> list[Reply]:
    """Answer all requests together.

    `on_event` hears of every token, scale and image as it is made; `should_stop(i)` is asked between steps.
    Raises ValueError when a prompt does not fit the context or its images do not match its placeholders.
    """
    return _Generation(
        model, requests, on_event or (lambda event: None), should_stop or (lambda i: False)
    ).run()


class _Generation:
    """State of a batch between steps: text goes on first, then all that wait for an image draw together."""

    def __init__(
        self,
        model: Vargpt,
        requests: Sequence[Request],
        on_event: Callable[[Event], None],
        should_stop: Callable[[int], bool],
    ) -> None:
        self.model, self.on_event, self.should_stop = model, on_event, should_stop
        self.runs = [_Run(index, request) for index, request in enumerate(requests)]
        self.context = model.config.text_config.max_position_embeddings
        for run in self.runs:
            if len(run.request.input_ids) >= self.context:
                length = len(run.request.input_ids)
                raise UserError(
                    f"prompt has {length} tokens; the context holds {self.context}, reply included"
                )

        config = model.config
        barred = [config.image_token_id, config.image_end_token_id, config.image_pad_token_id]
        self.barred = torch.tensor(barred, device=model.device)
        self.steps = CachedLanguageModel(model.language_model)

    def run(self) -> list[Reply]:
        if self.runs:
            self._make_room()
            self._read_prompts()
        while active := [run for run in self.runs if not self._is_over(run)]:
            start = self.model.config.image_start_token_id
            speaking = [run for run in active if run.next_token != start]
            if speaking:
                self._speak(speaking)
            else:
                self._draw(active)
        return [run.reply(self.model.config.num_image_tokens) for run in self.runs]

    def _is_over(self, run: _Run) -> bool:
        if run.finish_reason is None and self.should_stop(run.index):
            run.finish_reason = "cancelled"
        return run.finish_reason is not None

    def _make_room(self) -> None:
        """A row for each request and, where one is sure to be guided, a row for its empty prompt."""
        longest = max(len(run.request.input_ids) for run in self.runs)
        prompted = [run for run in self.runs if run.params.guidance_mode is GuidanceMode.PROMPT]
        is_guided = any(run.request.force_image for run in prompted)
        num_positions = min(self.context, longest + 2 * self.model.config.num_image_tokens)
        self.steps.reserve((1 + is_guided) * len(self.runs), num_positions)

    def _read_prompts(self) -> None:
        embedded = [self._embedded(run.request) for run in self.runs]
        for run, rows in zip(self.runs, embedded, strict=True):
            run.length = len(rows)
        embedded_RTD = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
        hidden_RTD = self.steps.step(embedded_RTD, range(len(self.runs)), [0] * len(self.runs))
        last = [run.length - 1 for run in self.runs]
        self._choose_next(self.runs, hidden_RTD[range(len(self.runs)), last])

    def _embedded(self, request: Request) -> Tensor:
        device, dtype = self.model.device, self.model.dtype
        pixels, drawn = request.pixel_values, request.generation_pixel_values
        pyramid = None
        if drawn is not None and len(drawn):
            codes_GL = torch.cat(self.model.image_tokenizer.encode(drawn.to(device, dtype)), dim=1)
            pyramid = self.model.pyramid(codes_GL)[0]
        pixels = None if pixels is None else pixels.to(device, dtype)
        return self.model.embed(request.input_ids.to(device)[None], pixels, pyramid)[0]

    def _speak(self, runs: list[_Run]) -> None:
        """Feed each run's next token and choose the one after it."""
        input_ids = torch.tensor([[run.next_token] for run in runs], device=self.model.device)
        embedded_R1D = self.model.language_model.get_input_embeddings()(input_ids)
        needed = max(run.length for run in runs) + 1
        if needed > self.steps.num_positions:  # doubled, so that copying stays rare
            self.steps.reserve(len(self.runs), min(self.context, 2 * needed))
        rows, lengths = [run.index for run in runs], [run.length for run in runs]
        last_RD = self.steps.step(embedded_R1D, rows, lengths)[:, -1]
        for run in runs:
            run.length += 1
        self._choose_next(runs, last_RD)

    def _choose_next(self, runs: list[_Run], last_RD: Tensor) -> None:
        forced = [run.request.force_image and not run.token_ids for run in runs]
        # A forced image must not use up random numbers: its request would draw another picture when alone.
        free = [row for row, is_forced in enumerate(forced) if not is_forced]
        chosen = dict(zip(free, self._choose([runs[row] for row in free], last_RD[free]), strict=True))
        for row, run in enumerate(runs):
            self._accept(run, chosen.get(row, self.model.config.image_start_token_id))

    def _choose(self, runs: list[_Run], last_RD: Tensor) -> list[int]:
        if not runs:
            return []
        logits_RV = self.model.text_logits(last_RD).float()
        logits_RV.index_fill_(1, self.barred, float("-inf"))
        full = [row for row, run in enumerate(runs) if len(run.images) >= run.params.max_images]
        if full:
            logits_RV[full, self.model.config.image_start_token_id] = float("-inf")
        choices = [run.params.text_choice for run in runs]
        chosen_R1 = sample_each(logits_RV[:, None], choices, [run.generator for run in runs])
        return chosen_R1[:, 0].tolist()

    def _accept(self, run: _Run, token: int) -> None:
        """Take the chosen token: end there, or keep it to be fed next."""
        config = self.model.config
        is_image = token == config.image_start_token_id
        if token == config.text_config.eos_token_id:
            run.finish_reason = "stop"
            return
        needed = run.length + 1 + (config.num_image_tokens + 1 if is_image else 0)
        if run.num_words >= run.params.max_new_tokens or needed > self.context:
            run.finish_reason = "length"
            return
        run.num_words += not is_image
        self._say(run, token)

    def _say(self, run: _Run, token: int) -> None:
        run.next_token = token
        run.token_ids.append(token)
        self.on_event(Event(run.index, "token", token_id=token))

    def _draw(self, runs: list[_Run]) -> None:
        """Draw for each run, and let the image's end come next."""
        requests = [
            ImageRequest(run.index, run.length, len(self.runs) + run.index, run.params, run.generator)
            for run in runs
        ]
        pictures = draw(self.model, self.steps, requests, lambda k: self._tell_scale(runs, k))
        for run, picture in zip(runs, pictures, strict=True):
            run.length += 1 + self.model.config.num_image_tokens
            run.images.append(picture)
            self.on_event(Event(run.index, "image", image=picture))
            self._say(run, self.model.config.image_end_token_id)

    def _tell_scale(self, runs: list[_Run], k: int) -> None:
        for run in runs:
            self.on_event(Event(run.index, "scale", scale=k))
