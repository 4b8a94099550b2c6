"""The text tokenizer of a model made from nothing: byte-level BPE, so that any text has tokens."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.config import VargptConfig

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IMAGE = "<image>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<|image_gen_start|>", "<|image_gen_end|>", "<|image_gen_pad|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, IMAGE, IMAGE_START, IMAGE_END, IMAGE_PAD)


def build_text_tokenizer(texts: Iterable[str], config: VargptConfig) -> PreTrainedTokenizerFast:
    """Learn merges from texts; special tokens get the ids that the config names, the first seven."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # The space before a drawing belongs to the drawing: it needs no token of its own.
    special = [AddedToken(t, special=True, normalized=False, lstrip=t == IMAGE_START) for t in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=config.text_config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, IMAGE_START, IMAGE_END, IMAGE_PAD],
        model_max_length=config.text_config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    return tokenizer
