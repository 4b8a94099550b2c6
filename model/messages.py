"""Conversations as lists of messages: the chat template, and checks of what a user has written.

A message is a dictionary of `role` (system, user or assistant) and `content`, which is a text or a list of
parts. A part is {"type": "text", "text": ...}, {"type": "image", "image": ...} for an input image, or
{"type": "image_gen", "image": ...} for an image that the assistant has drawn; images are Pillow's.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from model.errors import UserError
from model.text_tokenizer import BOS, EOS, IMAGE, IMAGE_END, IMAGE_GEN, IMAGE_PAD, IMAGE_START, PAD

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# A user's turn ends with the assistant's name, so a prompt is a conversation that ends with a user's turn,
# rendered exactly as in training.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if system_prompt %}{{ system_prompt + ' ' }}{% endif %}
{%- for message in messages %}
  {%- if message['role'] == 'user' %}{{ 'USER: ' }}
  {%- elif message['role'] == 'assistant' %}{{ ' ' }}{% endif %}
  {%- if message['content'] is string %}{{ message['content'] }}
  {%- else %}
    {%- for part in message['content'] %}
      {%- if part['type'] == 'text' %}{{ part['text'] }}
      {%- elif part['type'] == 'image' %}{{ '<image>\\n' }}
      {%- elif part['type'] == 'image_gen' %}{{ '<image_gen>' }}
      {%- else %}{{ raise_exception('unknown part type ' + part['type']|string) }}{% endif %}
    {%- endfor %}
  {%- endif %}
  {%- if message['role'] == 'system' %}{{ ' ' }}
  {%- elif message['role'] == 'user' %}{{ ' ASSISTANT:' }}{% else %}{{ eos_token }}{% endif %}
{%- endfor %}
"""

ROLES = ("system", "user", "assistant")
# Would be read as tokens if they stood in a user's text.
RESERVED = (IMAGE, IMAGE_GEN, IMAGE_START, IMAGE_END, IMAGE_PAD, BOS, EOS, PAD)
Conversation = Sequence[dict[str, Any]]


def check_roles(messages: Conversation) -> None:
    """Raise UserError unless there are messages and each has a role that is known."""
    if not messages:
        raise UserError("messages are empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise UserError(f"messages[{index}] must be a dictionary, got {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise UserError(
                f"messages[{index}].role must be one of {list(ROLES)}, got {message.get('role')!r}"
            )


def check_prompt(messages: Conversation) -> None:
    """Raise UserError, which names the message, unless the conversation can be answered.

    It must end with a user's turn; texts must be Unicode without reserved words; images must be images.
    """
    check_roles(messages)
    for index, message in enumerate(messages):
        content, where = message.get("content"), f"messages[{index}]"
        if isinstance(content, str):
            _check_text(content, where)
        elif isinstance(content, list | tuple):
            for part in content:
                _check_part(part, where)
        else:
            raise UserError(f"{where}.content must be a text or a list, got {type(content).__name__}")
    if messages[-1]["role"] != "user":
        raise UserError(f"messages must end with a user's turn, got one of the {messages[-1]['role']}")


def _check_part(part: object, where: str) -> None:
    shown = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or (kind := part.get("type")) not in ("text", "image", "image_gen"):
        raise UserError(f"{where}: unknown modality {shown!r}; known: text, image, image_gen")
    if kind == "text":
        _check_text(part.get("text"), where)
    elif not isinstance(image := image_of(part), Image.Image):
        raise UserError(f"{where}: {kind} must be a picture, got {type(image).__name__}")


def _check_text(text: object, where: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"{where}: text must be a string, got {type(text).__name__}")
    for word in RESERVED:
        if word in text:
            raise UserError(f"{where}: text must not hold the reserved word {word!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: text is not valid Unicode: {error.reason}") from None


def image_of(part: dict[str, Any]) -> Any:
    """What an `image` or `image_gen` part shows, which stands under its type or under `image`."""
    return part.get(part["type"], part.get("image"))


def images_of(messages: Conversation) -> tuple[list[Image.Image], list[Image.Image]]:
    """Input images and drawn images of a conversation, each in their order."""
    parts = [
        part for message in messages if not isinstance(message["content"], str) for part in message["content"]
    ]
    inputs = [image_of(part) for part in parts if part["type"] == "image"]
    return inputs, [image_of(part) for part in parts if part["type"] == "image_gen"]
