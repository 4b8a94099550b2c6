"""Computes the codes of all pictures that stages draw, each once, by one process or by many at a time."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from model.errors import UserError
from model.image_tokenizer import ImageTokenizer
from model.processing import VargptProcessor
from model.text_tokenizer import IMAGE_GEN
from training.data.code_cache import LARGEST_CODEBOOK, CodeCache, add_codes, tokenizer_key
from training.data.datasets import Dataset
from training.data.sample_encoding import placeholders
from training.data.samples import ImageRef
from training.tracking.progress import progress_line

# A process that is killed computes at most so many pictures again.
PICTURES_PER_PART = 4096
DECODING_THREADS = 8
# Bytes of a digest that choose the process.
SHARD_BYTES = 4


def encode_pictures(
    datasets: Iterable[Dataset],
    tokenizer: ImageTokenizer,
    processor: VargptProcessor,
    codes: Path,
    rank: int = 0,
    world_size: int = 1,
    batch: int = 64,
) -> tuple[Path, int]:
    """Compute the codes of this process's share that are not there yet; the cache, and how many were missing.

    Args:
        tokenizer: On the device that computes; its weights decide the folder below `codes`.
        batch: Pictures that are encoded at a time.

    Raises:
        UserError: a picture that cannot be read.
    """
    if tokenizer.config.codebook_size > LARGEST_CODEBOOK:
        raise UserError(f"codes of {tokenizer.config.codebook_size} vectors do not fit into 16 bits")
    folder = codes / tokenizer_key(tokenizer, processor)
    known = CodeCache(folder)
    wanted = {
        digest: picture
        for digest, picture in drawn_pictures(datasets)
        if int.from_bytes(digest[:SHARD_BYTES], "big") % world_size == rank and digest not in known
    }
    todo, num_done = sorted(wanted.items()), 0
    with (
        progress_line("encode pictures", 0, len(todo), rank == 0, unit="pictures") as line,
        ThreadPoolExecutor(DECODING_THREADS) as threads,
    ):
        for part in _cut(todo, PICTURES_PER_PART):
            rows = []
            for pixels_G3HW in _decoded(part, processor, threads, batch):
                rows.append(_codes(tokenizer, pixels_G3HW))
                num_done += len(pixels_G3HW)
                line.show(num_done, {})
            add_codes(folder, [digest for digest, _ in part], torch.cat(rows))
    return folder, len(todo)


def drawn_pictures(datasets: Iterable[Dataset]) -> Iterator[tuple[bytes, ImageRef]]:
    """Digest and place of every picture that samples draw; one that several draw comes several times."""
    for dataset in datasets:
        for index in range(len(dataset)):
            sample = dataset.sample(index)
            kinds = placeholders(sample)
            if IMAGE_GEN not in kinds:
                continue
            digests = dataset.picture_digests(index)
            for kind, digest, image in zip(kinds, digests, sample.images, strict=True):
                if kind == IMAGE_GEN:
                    yield digest, image


Wanted = Sequence[tuple[bytes, ImageRef]]


def _cut(todo: Wanted, size: int) -> list[Wanted]:
    return [todo[first : first + size] for first in range(0, len(todo), size)]


def _decoded(
    part: Wanted, processor: VargptProcessor, threads: ThreadPoolExecutor, batch: int
) -> Iterator[Tensor]:
    """Pixels of pictures, some at a time, (G, 3, H, W); the next ones are decoded meanwhile."""
    futures = [
        [threads.submit(lambda image=image: processor.drawn([image.open()])) for _, image in some]
        for some in _cut(part, batch)
    ]
    for some in futures:
        yield torch.cat([future.result() for future in some])
        some.clear()


@torch.no_grad()
def _codes(tokenizer: ImageTokenizer, pixels_G3HW: Tensor) -> Tensor:
    device = tokenizer.quantizer.codebook.weight.device
    return torch.cat(tokenizer.encode(pixels_G3HW.to(device)), dim=1).cpu()
