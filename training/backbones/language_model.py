"""The text tokenizer and the language model of a tiny model, learned from the prepared conversations.

The language model reads here what it will later see: text-only conversations, in which a sentence takes the
place of the picture. Without it, yes-or-no questions about pictures stay at chance (measured in the tiny
recipe).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.backbones import LanguageModel
from model.config import VargptConfig
from model.cpu_kernels import eager_attention
from model.losses import IGNORED, text_loss
from model.processing import IMAGE_GEN, Encoded, VargptProcessor
from model.text_tokenizer import SPECIAL_TOKENS, build_text_tokenizer
from training.backbones.fit import FitSettings, fit
from training.data.bad_records import BadRecordLog
from training.data.prepared_data import open_train_split
from training.data.samples import Sample
from training.digits.scene_pool import batch_indices
from training.params import ScheduleParams

# Shape legend: B = batch, T = positions, D = width, P = positions that are asked.

WORDS = ("text", "understanding", "drawing")
_NO_WORDS = re.compile("|".join(re.escape(token) for token in (*SPECIAL_TOKENS, IMAGE_GEN)))


def tiny_processor(config: VargptConfig, tokenizer: PreTrainedTokenizerFast) -> VargptProcessor:
    """The processor of a model made from nothing: no system prompt, pictures whole."""
    return VargptProcessor.for_config(config, tokenizer, system_prompt="", crop_margin=1.0)


def read_conversations(prepared: Path, name: str) -> Sequence[Sample]:
    """The training conversations of one kind of data, images unread. ValueError when there are none."""
    return open_train_split(prepared, name, BadRecordLog(), verify_images=False)


def learn_text_tokenizer(prepared: Path, config: VargptConfig) -> PreTrainedTokenizerFast:
    """A text tokenizer of all training conversations, as the model reads them."""
    template = tiny_processor(config, build_text_tokenizer((), config))

    def texts() -> Iterator[str]:
        for name in WORDS:
            for sample in read_conversations(prepared, name):
                yield from _NO_WORDS.split(template.render(sample.conversation()))

    return build_text_tokenizer(texts(), config)


def train_language(
    model: LanguageModel,
    processor: VargptProcessor,
    samples: Sequence[Sample],
    params: ScheduleParams,
    settings: FitSettings,
) -> None:
    """Train in place on conversations without pictures; only answers are asked for."""
    encoded: dict[int, Encoded] = {}

    def at(index: int) -> Encoded:
        if index not in encoded:
            encoded[index] = processor.encode(samples[index].conversation(), [])
        return encoded[index]

    def losses_at(step: int) -> dict[str, Tensor]:
        index_B = batch_indices(step, params.batch, len(samples), settings.seed)
        return {
            "text": answer_loss(
                model, _on(model.device, processor.collate([at(index) for index in index_B.tolist()]))
            )
        }

    model.requires_grad_(True).train()
    with eager_attention(model, settings.precision):
        fit([model], params, settings, losses_at).copy_to_parameters()
    model.requires_grad_(False).eval()


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def answer_loss(model: LanguageModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the tokens that labels ask for, in nats."""
    embedded_BTD = model.get_input_embeddings()(batch["input_ids"])
    hidden_BTD = model.states(embedded_BTD, attention_mask=batch["attention_mask"], use_cache=False)
    asked_BT = batch["labels"][:, 1:] != IGNORED
    loss, count = text_loss(model.lm_head(hidden_BTD[:, :-1][asked_BT]), batch["labels"][:, 1:][asked_BT])
    return loss / count
