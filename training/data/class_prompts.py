"""Prompt and reply templates for an image of a class, worded as in VARGPT's ImageNet-Instruct dataset.

Source: samples of the datasets that are published with arXiv:2501.12327.
"""

from model.text_tokenizer import IMAGE_GEN

REQUESTS = (
    "Please design a drawing of {}.",
    "Can you generate a rendered photo of {}?",
    "I need a designed photo of {}.",
)
REPLIES = (
    f"Here's a rendered painting of {{}} {IMAGE_GEN}",
    f"I have designed a drawing of {{}} {IMAGE_GEN}",
)


def article(word: str) -> str:
    """The indefinite article of a word: `an` before a vowel, else `a`."""
    return "an" if word[0] in "aeiou" else "a"
