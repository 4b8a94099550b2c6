"""From a sample to tensors: words, pictures of the vision tower, pictures or codes to draw."""

import re
from dataclasses import replace

from torch import Tensor

from model.batches import Encoded
from model.errors import UserError
from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE, IMAGE_GEN, IMAGE_PAD
from training.data.code_cache import CodeCache
from training.data.datasets import Dataset
from training.data.samples import Sample

# Encoded samples are cached up to this size: a small dataset is read from the disk once.
CACHE_BYTES = 1 << 30


def placeholders(sample: Sample) -> list[str]:
    """`<image>` or `<image_gen>` for each image of a sample, in order."""
    return re.findall(f"{IMAGE}|{IMAGE_GEN}", "".join(message.content for message in sample.messages))


class SampleEncoder:
    """Encodes samples of several datasets, and keeps what fits into memory.

    Args:
        with_text: Text after the last drawing is encoded too, because text has a weight.
        codes: Codes of all pictures to draw, in place of their pixels.
    """

    def __init__(self, processor: VargptProcessor, with_text: bool, codes: CodeCache | None) -> None:
        self.processor, self.with_text, self.codes = processor, with_text, codes
        self.image_pad_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        # Keys are dataset, sample and whether the prompt is dropped: the ids of records need not be unique.
        self._cache: dict[tuple[int, int, bool], Encoded] = {}
        self._cache_bytes = 0

    def encode(self, datasets: list[Dataset], key: tuple[int, int, bool]) -> Encoded:
        """The sample of this dataset and number, with its prompt dropped or not."""
        if key not in self._cache:
            encoded = self._encode(datasets[key[0]], key[1], key[2])
            size = sum(value.nbytes for value in vars(encoded).values() if isinstance(value, Tensor))
            if self._cache_bytes + size > CACHE_BYTES:
                return encoded
            self._cache[key] = encoded
            self._cache_bytes += size
        return self._cache[key]

    def _encode(self, dataset: Dataset, index: int, drops_prompt: bool) -> Encoded:
        sample = dataset.sample(index)
        kinds = placeholders(sample)
        images = [reference.open() for reference in sample.images] if self.codes is None else []
        if self.codes is not None:
            digests = dataset.picture_digests(index)
            for kind, reference, digest in zip(kinds, sample.images, digests, strict=True):
                images.append(self._codes_of(digest, sample) if kind == IMAGE_GEN else reference.open())
        if drops_prompt:
            return self.processor.encode_unconditional(images[0])
        encoded = self.processor.encode(sample.conversation(), images)
        return encoded if self.with_text else self._cut_after_last_drawing(encoded)

    def _codes_of(self, digest: bytes, sample: Sample) -> Tensor:
        assert self.codes is not None
        codes = self.codes.get(digest)
        if codes is None:
            raise UserError(
                f"{sample.source}: no codes of the picture that {sample.id} draws; "
                "compute them with: vargpt data encode"
            )
        return codes

    def _cut_after_last_drawing(self, encoded: Encoded) -> Encoded:
        """Without the text after the last drawing, which no loss depends on where text has no weight."""
        positions = (encoded.input_ids == self.image_pad_id).nonzero().flatten()
        if not len(positions):
            return encoded
        end = int(positions[-1]) + 1
        return replace(encoded, input_ids=encoded.input_ids[:end], labels=encoded.labels[:end])
