"""How a picture of a class is asked for and answered: the wording of ImageNet-Instruct (spec section 7)."""

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
    """`an` before a vowel, else `a`."""
    return "an" if word[0] in "aeiou" else "a"
