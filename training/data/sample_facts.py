"""Lengths of samples in tokens, and a hash of what decides them."""

import hashlib
import json

from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE, IMAGE_GEN, IMAGE_PAD
from training.data.datasets import SampleFacts
from training.data.samples import Sample

# What shows how a processor cuts text: words, digits, scripts, white space, turns, both kinds of images.
PROBE = [
    {"role": "system", "content": "Answer briefly."},
    {
        "role": "user",
        "content": f"{IMAGE}\nWhich digits? 0123456789; naïve, Größe, 数字, emoji 🙂  \t x=1.5e-3",
    },
    {"role": "assistant", "content": f"A rendered photo of 7. {IMAGE_GEN} It's done!\n\n"},
    {"role": "user", "content": "Thanks; supercalifragilistic?"},
    {"role": "assistant", "content": "No."},
]


def text_sha256(processor: VargptProcessor) -> str:
    """A hash of how a processor makes tokens of conversations, with or without a system message."""
    ids = [processor.encode_text(turns)[0].tolist() for turns in (PROBE, PROBE[1:])]
    facts = [ids, processor.null_prompt(), len(processor.tokenizer)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def is_single_drawing(sample: Sample) -> bool:
    """Whether the last answer draws the only image: its prompt can be dropped for guidance."""
    return sample.messages[-1].content.count(IMAGE_GEN) == len(sample.images) == 1


def sample_facts(sample: Sample, processor: VargptProcessor) -> SampleFacts:
    """Lengths of a sample, without its pictures."""
    ids, _, _ = processor.encode_text(sample.conversation())
    drawn = (ids == processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD)).nonzero().flatten()
    drawn_end = int(drawn[-1]) + 1 if len(drawn) else 0
    return SampleFacts(len(ids), drawn_end, is_single_drawing(sample))
