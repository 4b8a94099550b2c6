"""Special tokens and placeholders, and the byte-level BPE tokenizer of a model trained from nothing."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.config import VargptConfig

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# Stand in a conversation for an input image and for a drawn one. The first is a token, which the processor
# repeats for every position of the image; in place of the second it writes the three tokens below.
IMAGE, IMAGE_GEN = "<image>", "<image_gen>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<|image_gen_start|>", "<|image_gen_end|>", "<|image_gen_pad|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, IMAGE, IMAGE_START, IMAGE_END, IMAGE_PAD)


def build_text_tokenizer(texts: Iterable[str], config: VargptConfig) -> PreTrainedTokenizerFast:
    """Train BPE on texts; the seven special tokens get the ids 0 to 6, as the config of `tiny` has them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # The start token takes the space before an image with it, so that it needs no token of its own.
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
