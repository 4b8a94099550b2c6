"""Special tokens and placeholders; text tokenizers: trained from nothing, or the published one."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from model.config import VargptConfig
from model.errors import UserError, is_outage

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


def published_text_tokenizer(folder: Path, config: VargptConfig) -> PreTrainedTokenizerBase:
    """LLaVA's text tokenizer, or that of a released VARGPT, with the three tokens of drawings.

    Raises:
        UserError: the folder has none that can be read, or it numbers a token otherwise than the config.
        OSError: a disk failed.
    """
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} to read a text tokenizer from")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        if is_outage(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder} holds no text tokenizer that can be read: {reason}") from error
    # The space before a drawing is part of its start token.
    drawing_tokens = [
        AddedToken(token, special=True, normalized=False, lstrip=token == IMAGE_START)
        for token in (IMAGE_START, IMAGE_END, IMAGE_PAD)
    ]
    tokenizer.add_tokens(drawing_tokens, special_tokens=True)
    expected_ids = {
        IMAGE: config.image_token_id,
        IMAGE_START: config.image_start_token_id,
        IMAGE_END: config.image_end_token_id,
        IMAGE_PAD: config.image_pad_token_id,
    }
    for token, expected in expected_ids.items():
        if (found := tokenizer.convert_tokens_to_ids(token)) != expected:
            raise UserError(f"the text tokenizer of {folder} numbers {token} {found}, expected {expected}")
    return tokenizer
