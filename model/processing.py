"""From conversations and pictures to tensors and back: one template and one set of transforms for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from model.config import VargptConfig
from model.errors import UserError
from model.generation.generate import Reply, Request
from model.generation.sampling import SamplingParams
from model.losses import IGNORED
from model.text_tokenizer import EOS, IMAGE, IMAGE_END, IMAGE_PAD, IMAGE_START, PAD
from model.transforms import drawn_pixels, picture, vision_pixels

# Shape legend: T = positions, I = input images, G = drawn images, B = batch.

IMAGE_GEN = "<image_gen>"
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# After every user turn it is the assistant's: a prompt is the conversation so far, as it stands in training.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if system_prompt %}{{ system_prompt + ' ' }}{% endif %}
{%- for message in messages %}
  {%- if message['role'] == 'system' %}{{ message['content'] + ' ' }}
  {%- elif message['role'] == 'user' %}{{ 'USER: ' }}{% else %}{{ ' ' }}{% endif %}
  {%- if message['role'] != 'system' %}
    {%- if message['content'] is string %}{{ message['content'] }}
    {%- else %}
      {%- for part in message['content'] %}
        {%- if part['type'] == 'text' %}{{ part['text'] }}
        {%- elif part['type'] == 'image' %}{{ '<image>\\n' }}
        {%- elif part['type'] == 'image_gen' %}{{ '<image_gen>' }}
        {%- else %}{{ raise_exception('unknown part type ' + part['type']|string) }}{% endif %}
      {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'user' %}{{ ' ASSISTANT:' }}{% else %}{{ eos_token }}{% endif %}
  {%- endif %}
{%- endfor %}
"""

ROLES = ("system", "user", "assistant")
Conversation = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """One sample: ids and labels (T,), input images (I, 3, H, W), drawn images (G, 3, H, W) in [-1, 1]."""

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor
    generation_pixel_values: Tensor
    is_dropped: bool = False


class VargptProcessor(ProcessorMixin):
    """Text tokenizer, chat template and image transforms of one model.

    Args:
        image_size, drawn_size: Sides in pixels that the vision tower and the image tokenizer take.
        num_vision_tokens, num_image_tokens: Positions of an input image and of a drawn one.
        crop_margin: How much larger than `drawn_size` an image is made before the central square is cut.
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
        self.image_size, self.drawn_size = image_size, drawn_size
        self.num_vision_tokens, self.num_image_tokens = num_vision_tokens, num_image_tokens
        self.crop_margin, self.system_prompt = crop_margin, system_prompt
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def for_config(
        cls, config: VargptConfig, tokenizer: PreTrainedTokenizerBase, **choices: Any
    ) -> "VargptProcessor":
        """The processor whose sizes agree with a model's."""
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
        """Prompts with `<image>` in them, and their pictures in order, as LLaVA's users write them."""
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        rows = [self._ids(prompt) for prompt in texts]
        self._check_count("images", len(pictures), sum(prompt.count(IMAGE) for prompt in texts))
        data = self._padded(rows, [torch.full_like(row, IGNORED) for row in rows])
        del data["labels"]
        if pictures:
            data["pixel_values"] = self._vision(pictures)
        return BatchFeature(data)

    def render(self, messages: Conversation) -> str:
        """The conversation as the model reads it; images still as placeholders."""
        return self.apply_chat_template(list(messages), tokenize=False, system_prompt=self.system_prompt)

    def null_prompt(self) -> list[int]:
        """The tokens before an image that answers an empty instruction."""
        return self._ids(self.render([{"role": "user", "content": ""}])).tolist()

    def request(
        self, messages: Conversation, params: SamplingParams | None = None, force_image: bool = False
    ) -> Request:
        """A prompt to answer: conversation so far, pictures inside `image` and `image_gen` parts.

        Raises ValueError for an unknown role or part, a reserved word in a text, or something that is no
        picture.
        """
        inputs, drawn = self._pictures(messages)
        return Request(
            input_ids=self._ids(self.render(messages)),
            pixel_values=self._vision(inputs) if inputs else None,
            params=params or SamplingParams(),
            force_image=force_image,
            generation_pixel_values=self.drawn(drawn) if drawn else None,
        )

    def _pictures(self, messages: Conversation) -> tuple[list[Image.Image], list[Image.Image]]:
        found: dict[str, list[Image.Image]] = {"image": [], "image_gen": []}
        for index, message in enumerate(messages):
            where = f"messages[{index}]"
            if message.get("role") not in ROLES:
                raise UserError(f"{where}.role must be one of {list(ROLES)}, got {message.get('role')!r}")
            content = message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
            for part in parts:
                self._check_part(part, where)
                if part["type"] in found:
                    found[part["type"]].append(part[part["type"] if part["type"] in part else "image"])
        return found["image"], found["image_gen"]

    @staticmethod
    def _check_part(part: dict[str, Any], where: str) -> None:
        kind = part.get("type")
        if kind not in ("text", "image", "image_gen"):
            raise UserError(f"{where}: unknown modality {kind!r}; known: text, image, image_gen")
        if kind != "text":
            image = part.get(kind, part.get("image"))
            if not isinstance(image, Image.Image):
                raise UserError(f"{where}: {kind} must be a picture, got {type(image).__name__}")
            return
        for word in (IMAGE, IMAGE_GEN, IMAGE_START, IMAGE_END, IMAGE_PAD, EOS, PAD):
            if word in part["text"]:
                raise UserError(f"{where}: text must not hold the reserved word {word!r}")

    def encode(self, messages: Conversation, images: Sequence[Image.Image]) -> Encoded:
        """A whole conversation to learn from: labels ask for the assistant's words and image starts and ends.

        `images` are in the order of their `<image>` and `<image_gen>` placeholders. ValueError when they do
        not match.
        """
        text = self.render(messages)
        self._check_count("images", len(images), text.count(IMAGE) + text.count(IMAGE_GEN))
        ids, labels = [], []
        for piece, is_answer in self._pieces(messages):
            piece_ids = self._ids(piece)
            ids.append(piece_ids)
            labels.append(self._asked(piece_ids) if is_answer else torch.full_like(piece_ids, IGNORED))
        order = [IMAGE if text.startswith(IMAGE, place) else IMAGE_GEN for place in _places(text)]
        paired = list(zip(order, images, strict=True))
        return Encoded(
            torch.cat(ids),
            torch.cat(labels),
            self._vision([image for kind, image in paired if kind == IMAGE]),
            self.drawn([image for kind, image in paired if kind == IMAGE_GEN]),
        )

    def _pieces(self, messages: Conversation) -> list[tuple[str, bool]]:
        """The rendered conversation cut at its turns, so that a prompt's ids begin the training ids."""
        pieces, done = [], 0
        for count, message in enumerate(messages, start=1):
            text = self.render(messages[:count])
            pieces.append((text[done:], message["role"] == "assistant"))
            done = len(text)
        return pieces

    def encode_dropped(self, image: Image.Image) -> Encoded:
        """A drawn image after the empty instruction: what guidance compares with. Asks for no words."""
        prompt = torch.tensor(self.null_prompt())
        ids = torch.cat([prompt, self._ids(IMAGE_GEN)])
        return Encoded(
            ids, torch.full_like(ids, IGNORED), self._vision([]), self.drawn([image]), is_dropped=True
        )

    def _asked(self, ids: Tensor) -> Tensor:
        pad = self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        return ids.masked_fill(ids == pad, IGNORED)

    def _ids(self, text: str) -> Tensor:
        drawing = IMAGE_START + IMAGE_PAD * self.num_image_tokens + IMAGE_END
        expanded = text.replace(IMAGE, IMAGE * self.num_vision_tokens).replace(IMAGE_GEN, drawing)
        return torch.tensor(self.tokenizer.encode(expanded, add_special_tokens=False), dtype=torch.long)

    def _vision(self, pictures: Sequence[Image.Image]) -> Tensor:
        rows = [vision_pixels(image, self.image_size) for image in pictures]
        return torch.stack(rows) if rows else torch.zeros(0, 3, self.image_size, self.image_size)

    def drawn(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures to be drawn as the image tokenizer takes them, (G, 3, H, W) in [-1, 1]."""
        rows = [drawn_pixels(image, self.drawn_size, self.crop_margin) for image in pictures]
        return torch.stack(rows) if rows else torch.zeros(0, 3, self.drawn_size, self.drawn_size)

    @staticmethod
    def _check_count(name: str, given: int, placeholders: int) -> None:
        if given != placeholders:
            raise UserError(f"{name}: {given} given for {placeholders} placeholders")

    def _padded(self, rows: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        def pad(values: Sequence[Tensor], value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True, padding_value=value)

        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id),
            "labels": pad(labels, IGNORED),
            "attention_mask": pad([torch.ones_like(row) for row in rows], 0),
        }

    def collate(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A batch of any mixture of samples, padded on the right."""
        batch = self._padded([s.input_ids for s in samples], [s.labels for s in samples])
        batch["pixel_values"] = torch.cat([s.pixel_values for s in samples])
        batch["generation_pixel_values"] = torch.cat([s.generation_pixel_values for s in samples])
        dropped = [s.is_dropped for s in samples for _ in s.generation_pixel_values]
        batch["dropped"] = torch.tensor(dropped, dtype=torch.bool)
        return batch

    def segments(self, reply: Reply) -> list[tuple[str, str | Image.Image]]:
        """A reply in its order: ("text", words) and ("image", picture)."""
        start, end = self.tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
        found: list[tuple[str, str | Image.Image]] = []
        words: list[int] = []
        pictures = iter(reply.images)
        for token in [*reply.token_ids, None]:
            if token in (None, start) and words:
                text = self.tokenizer.decode(words, skip_special_tokens=True).strip()
                found += [("text", text)] if text else []
                words = []
            if token == end:
                found.append(("image", picture(next(pictures))))
            elif token not in (None, start):
                words.append(token)
        return found

    def text(self, reply: Reply) -> str:
        """The words of a reply, pictures left out."""
        return " ".join(str(content) for kind, content in self.segments(reply) if kind == "text")


def _places(text: str) -> list[int]:
    """Where placeholders stand, in textual order."""
    return sorted(
        place for word in (IMAGE, IMAGE_GEN) for place in range(len(text)) if text.startswith(word, place)
    )


AutoProcessor.register(VargptConfig, VargptProcessor)
