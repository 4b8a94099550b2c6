"""Trains text tokenizer and language model of a tiny model, from random weights, on prepared conversations.

The language model learns from conversations without images, in which a caption takes the place of the image.
Without them, yes-or-no questions about images stay at chance in stage 2.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.backbones import LanguageModel
from model.batches import Encoded
from model.config import VargptConfig
from model.losses import IGNORED, text_loss
from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE_GEN, SPECIAL_TOKENS, build_text_tokenizer
from model.training_attention import training_attention
from training.backbones.fit import FitSettings, fit
from training.data.bad_records import BadRecordLog
from training.data.prepared_data import open_train_split
from training.data.samples import Sample
from training.digits.scene_pool import batch_indices
from training.params import ScheduleParams

# Shape legend: B = batch, T = positions, D = width.

# Kinds of prepared data whose text the text tokenizer is trained on.
TEXT_KINDS = ("text", "understanding", "drawing")
_SPECIAL_TOKEN = re.compile("|".join(re.escape(token) for token in (*SPECIAL_TOKENS, IMAGE_GEN)))


def tiny_processor(config: VargptConfig, tokenizer: PreTrainedTokenizerFast) -> VargptProcessor:
    """The processor of a tiny model: no system prompt, images not cropped."""
    return VargptProcessor.for_config(config, tokenizer, system_prompt="", crop_margin=1.0)


def open_conversations(prepared: Path, kind: str) -> Sequence[Sample]:
    """Training conversations of one kind of prepared data, images unread. UserError without any."""
    return open_train_split(prepared, kind, BadRecordLog(), verify_images=False)


def train_text_tokenizer(prepared: Path, config: VargptConfig) -> PreTrainedTokenizerFast:
    """A text tokenizer trained on all training conversations, rendered by the prompt template."""
    template = tiny_processor(config, build_text_tokenizer((), config))

    def texts() -> Iterator[str]:
        for kind in TEXT_KINDS:
            for sample in open_conversations(prepared, kind):
                yield from _SPECIAL_TOKEN.split(template.render(sample.conversation()))

    return build_text_tokenizer(texts(), config)


def train_language(
    model: LanguageModel,
    processor: VargptProcessor,
    samples: Sequence[Sample],
    params: ScheduleParams,
    settings: FitSettings,
) -> None:
    """Train the model in place on conversations without images, with the loss of the answers only."""
    encoded: dict[int, Encoded] = {}

    def encode(index: int) -> Encoded:
        if index not in encoded:
            encoded[index] = processor.encode(samples[index].conversation(), [])
        return encoded[index]

    def compute_losses(step: int) -> dict[str, Tensor]:
        index_B = batch_indices(step, params.batch, len(samples), settings.seed)
        batch = processor.collate([encode(index) for index in index_B.tolist()])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        return {"text": answer_loss(model, batch)}

    model.requires_grad_(True).train()
    with training_attention(model, settings.precision):
        fit([model], params, settings, compute_losses)
    model.requires_grad_(False).eval()


def answer_loss(model: LanguageModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the tokens whose labels are not ignored, in nats."""
    embedded_BTD = model.get_input_embeddings()(batch["input_ids"])
    hidden_BTD = model.states(embedded_BTD, attention_mask=batch["attention_mask"], use_cache=False)
    is_target_BT = batch["labels"][:, 1:] != IGNORED
    loss, count = text_loss(
        model.lm_head(hidden_BTD[:, :-1][is_target_BT]), batch["labels"][:, 1:][is_target_BT]
    )
    return loss / count
