"""The processor: conversations and images to tensors, and replies back to text and images.

Training and serving both use it, so they cannot differ in template, token ids or image transforms.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from model.batches import Encoded, pad, padded
from model.config import VargptConfig
from model.errors import UserError
from model.generation.generate import Reply, Request
from model.generation.sampling import SamplingParams
from model.losses import IGNORED
from model.messages import CHAT_TEMPLATE, VICUNA_SYSTEM, Conversation, check_prompt, check_roles, images_of
from model.text_tokenizer import IMAGE, IMAGE_END, IMAGE_GEN, IMAGE_PAD, IMAGE_START
from model.transforms import drawn_pixels, picture, vision_pixels

# Shape legend: T = positions, I = input images, G = drawn images, L = image tokens.


class VargptProcessor(ProcessorMixin):
    """Text tokenizer, chat template and image transforms of one model.

    Args:
        image_size, drawn_size: Sides in pixels that the vision tower and the image tokenizer take.
        num_vision_tokens, num_image_tokens: Positions of an input image and of a drawn one.
        crop_margin: The shorter side of a drawn image over `drawn_size`, before its central square is cut
            out.
        system_prompt: The sentence before the first turn; may be empty.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int = 336,
        drawn_size: int = 256,
        num_vision_tokens: int = 576,
        num_image_tokens: int = 680,
        crop_margin: float = 1.125,
        system_prompt: str = VICUNA_SYSTEM,
        chat_template: str | None = None,
    ) -> None:
        if crop_margin < 1:
            raise UserError(f"crop_margin must be at least 1, got {crop_margin}")
        self.image_size, self.drawn_size = image_size, drawn_size
        self.num_vision_tokens, self.num_image_tokens = num_vision_tokens, num_image_tokens
        self.crop_margin, self.system_prompt = crop_margin, system_prompt
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def for_config(
        cls, config: VargptConfig, tokenizer: PreTrainedTokenizerBase, **choices: Any
    ) -> "VargptProcessor":
        """A processor whose sizes agree with a model's."""
        return cls(
            tokenizer,
            image_size=config.vision_config.image_size,
            drawn_size=config.image_size,
            num_vision_tokens=config.num_vision_tokens,
            num_image_tokens=config.num_image_tokens,
            **choices,
        )

    def __call__(
        self, images: Any = None, text: str | list[str] | None = None, return_tensors: str = "pt", **_: Any
    ) -> BatchFeature:
        """Prompts with `<image>` placeholders, and their images in order, as LLaVA's users write them."""
        if return_tensors != "pt":
            raise UserError(f"return_tensors must be 'pt', got {return_tensors!r}")
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise UserError("text is missing")
        pictures = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        _check_count(len(pictures), sum(prompt.count(IMAGE) for prompt in texts))
        if wrong := [image for image in pictures if not isinstance(image, Image.Image)]:
            raise UserError(f"images must be pictures of Pillow, got {type(wrong[0]).__name__}")
        rows = [self._ids(prompt) for prompt in texts]
        data = {
            "input_ids": pad(rows, self.tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in rows], 0),
        }
        if pictures:
            data["pixel_values"] = self._vision_pixels(pictures)
        return BatchFeature(data)

    def render(self, messages: Conversation) -> str:
        """A conversation as text, by the chat template, with a placeholder for each image."""
        return self.apply_chat_template(list(messages), tokenize=False, system_prompt=self.system_prompt)

    def null_prompt(self) -> list[int]:
        """Token ids of the prompt with an empty instruction."""
        return self._ids(self.render([{"role": "user", "content": ""}])).tolist()

    def request(
        self, messages: Conversation, params: SamplingParams | None = None, force_image: bool = False
    ) -> Request:
        """A request to answer a conversation, whose images stand in its `image` and `image_gen` parts.

        Raises UserError for what `check_prompt` refuses.
        """
        check_prompt(messages)
        inputs, drawn = images_of(messages)
        return Request(
            input_ids=self._ids(self.render(messages)),
            pixel_values=self._vision_pixels(inputs) if inputs else None,
            params=params or SamplingParams(),
            force_image=force_image,
            generation_pixel_values=self.drawn(drawn) if drawn else None,
        )

    def encode(self, messages: Conversation, images: Sequence[Image.Image | Tensor]) -> Encoded:
        """A training sample of a whole conversation; supervised are the assistant's words, image starts and
        ends.

        Args:
            images: In the order of their `<image>` and `<image_gen>` placeholders; drawn ones may be given as
                their codes, (L,), then all of them. UserError when images and placeholders differ in number.
        """
        ids, labels, placeholders = self.encode_text(messages)
        _check_count(len(images), len(placeholders))
        pairs = list(zip(placeholders, images, strict=True))
        inputs = self._vision_pixels([image for placeholder, image in pairs if placeholder == IMAGE])
        return Encoded(ids, labels, inputs, *self._drawn_as_given([i for p, i in pairs if p == IMAGE_GEN]))

    def encode_text(self, messages: Conversation) -> tuple[Tensor, Tensor, list[str]]:
        """What `encode` makes of the words: ids and labels, (T,), and the placeholders in their order."""
        check_roles(messages)
        turns = self._turns(messages)
        ids, labels = [], []
        for turn, is_answer in turns:
            turn_ids = self._ids(turn)
            ids.append(turn_ids)
            labels.append(self._labels(turn_ids) if is_answer else torch.full_like(turn_ids, IGNORED))
        placeholders = re.findall(f"{IMAGE}|{IMAGE_GEN}", "".join(turn for turn, _ in turns))
        return torch.cat(ids), torch.cat(labels), placeholders

    def _drawn_as_given(self, drawn: Sequence[Image.Image | Tensor]) -> tuple[Tensor, Tensor | None]:
        """Drawn images as pixels, (G, 3, H, W), or as codes, (G, L), and no pixels."""
        if drawn and isinstance(drawn[0], Tensor):
            return self.drawn([]), torch.stack(list(drawn))
        return self.drawn(drawn), None

    def _turns(self, messages: Conversation) -> list[tuple[str, bool]]:
        """The rendered conversation cut into turns, and whether each is the assistant's.

        Turns become ids one by one, so that the ids of a prompt are the beginning of the ids in training.
        """
        turns, length = [], 0
        for count, message in enumerate(messages, start=1):
            text = self.render(messages[:count])
            turns.append((text[length:], message["role"] == "assistant"))
            length = len(text)
        return turns

    def encode_unconditional(self, image: Image.Image | Tensor) -> Encoded:
        """A training sample that draws an image, or its codes, after the empty instruction; no words are
        supervised.
        """
        ids = torch.cat([torch.tensor(self.null_prompt()), self._ids(IMAGE_GEN)])
        labels, no_pixels = torch.full_like(ids, IGNORED), self._vision_pixels([])
        return Encoded(ids, labels, no_pixels, *self._drawn_as_given([image]), is_unconditional=True)

    def empty_sample(self) -> Encoded:
        """A sample of one token, without images or loss, for a process with fewer batches than others."""
        ids = torch.tensor(self.null_prompt()[:1])
        return Encoded(ids, torch.full_like(ids, IGNORED), self._vision_pixels([]), self.drawn([]))

    def _labels(self, ids: Tensor) -> Tensor:
        pad = self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        return ids.masked_fill(ids == pad, IGNORED)

    def _ids(self, text: str) -> Tensor:
        """Token ids of a text, with as many tokens for each placeholder as its image has positions."""
        drawn = IMAGE_START + IMAGE_PAD * self.num_image_tokens + IMAGE_END
        expanded = text.replace(IMAGE, IMAGE * self.num_vision_tokens).replace(IMAGE_GEN, drawn)
        return torch.tensor(self.tokenizer.encode(expanded, add_special_tokens=False), dtype=torch.long)

    def _vision_pixels(self, images: Sequence[Image.Image]) -> Tensor:
        rows = [vision_pixels(image, self.image_size) for image in images]
        return torch.stack(rows) if rows else torch.zeros(0, 3, self.image_size, self.image_size)

    def drawn(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the image tokenizer takes them, (G, 3, H, W) in [-1, 1]."""
        rows = [drawn_pixels(image, self.drawn_size, self.crop_margin) for image in images]
        return torch.stack(rows) if rows else torch.zeros(0, 3, self.drawn_size, self.drawn_size)

    def collate(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch of samples of any kinds, padded on the right: the arguments of the model's `loss_sums`."""
        return padded(samples, self.tokenizer.pad_token_id)

    def segments(self, reply: Reply) -> list[tuple[str, str | Image.Image]]:
        """The parts of a reply in order: ("text", text) or ("image", image)."""
        start, end = self.tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
        found: list[tuple[str, str | Image.Image]] = []
        words: list[int] = []
        images = iter(reply.images)
        for token in [*reply.token_ids, None]:
            if token in (None, start) and words:
                text = self.tokenizer.decode(words, skip_special_tokens=True).strip()
                found += [("text", text)] if text else []
                words = []
            if token == end:
                found.append(("image", picture(next(images))))
            elif token not in (None, start):
                words.append(token)
        return found

    def text(self, reply: Reply) -> str:
        """The text of a reply, without its images."""
        return " ".join(str(content) for kind, content in self.segments(reply) if kind == "text")


def _check_count(num_images: int, num_placeholders: int) -> None:
    if num_images != num_placeholders:
        raise UserError(f"images: {num_images} given for {num_placeholders} placeholders")


AutoProcessor.register(VargptConfig, VargptProcessor)
