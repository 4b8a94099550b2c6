"""Checkpoints of the published layouts with random weights, and a text tokenizer of LLaVA's size beside them.

Numbers are cut from one pool of normally distributed ones, which takes no longer than writing them; every
tensor begins at another place of the pool, so that a tensor in the wrong place is not equal to the right one.
"""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bench.published_layout import INTEGERS, Shape
from model.config import VargptConfig
from model.messages import VICUNA_SYSTEM
from model.text_tokenizer import IMAGE, PAD
from model.weight_files import MAX_SHARD, write_weights

# Standard deviation of random weights; larger ones would let activations grow from layer to layer.
STD = 0.02
# A prime, so that parts of one size do not repeat each other.
POOL_SIZE = 16_777_259
# What byte-level BPE learns to merge, so that a prompt has about as many tokens as with LLaVA's own
# tokenizer.
SENTENCES = (VICUNA_SYSTEM, "USER: What is in this picture? ASSISTANT: Draw a red seven on white.")


class RandomWeights:
    """Random tensors by key, the same for the same key."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        generator = torch.Generator().manual_seed(seed)
        self.pool = torch.randn(POOL_SIZE, generator=generator).mul_(STD).to(dtype)

    def tensor(self, key: str, shape: Shape) -> Tensor:
        """Weights around 0; of norms around 1; zeros where the published file holds whole numbers."""
        if key.endswith(INTEGERS):
            return torch.zeros(shape, dtype=torch.int64)
        start, count = zlib.crc32(key.encode()) % POOL_SIZE, math.prod(shape)
        flat = torch.empty(count, dtype=self.dtype)
        for begin in range(0, count, POOL_SIZE):
            piece = flat[begin : begin + POOL_SIZE]
            first = min(len(piece), POOL_SIZE - start)
            piece[:first] = self.pool[start : start + first]
            piece[first:] = self.pool[: len(piece) - first]
        is_norm = len(shape) == 1 and "norm" in key and key.endswith("weight")
        return (flat + 1 if is_norm else flat).view(shape)


def write_folder(
    folder: Path, layout: Mapping[str, Shape], weights: RandomWeights, max_shard: int | str = MAX_SHARD
) -> None:
    """Write a layout as sharded safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    types = {key: torch.int64 if key.endswith(INTEGERS) else weights.dtype for key in layout}
    meta = {key: torch.empty(shape, dtype=types[key], device="meta") for key, shape in layout.items()}
    write_weights(folder, meta, lambda key: weights.tensor(key, layout[key]), max_shard)


def write_pth(path: Path, layout: Mapping[str, Shape], weights: RandomWeights) -> None:
    """Write a layout as a `.pth`, which PyTorch can only write whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: weights.tensor(key, shape) for key, shape in layout.items()}, path)


def write_text_tokenizer(folder: Path, config: VargptConfig) -> None:
    """Write a byte-level tokenizer with LLaVA's ids: 0 to 2 special, words up to <image>, then <pad>.

    Words that byte-level BPE does not learn from a few sentences are fillers, which no text becomes.
    """
    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.image_token_id,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(SENTENCES, trainer)
    learned = json.loads(learner.to_str())["model"]
    numbers = range(len(learned["vocab"]), config.image_token_id)
    vocabulary = learned["vocab"] | {f"<filler_{number}>": number for number in numbers}
    backend = Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in learned["merges"]]))
    backend.pre_tokenizer, backend.decoder = learner.pre_tokenizer, decoders.ByteLevel()
    backend.add_special_tokens([*special, IMAGE, PAD])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=PAD
    ).save_pretrained(folder)
