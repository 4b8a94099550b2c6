"""Codes of pictures that were computed once: found by a hash of the picture, kept by a hash of the tokenizer.

A folder for each tokenizer, with any number of parts: `NAME.codes.npy` are the codes of some pictures and
`NAME.digests.npy`, written last, their `picture_digest`s. Processes add parts without knowing of each other.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.errors import UserError
from model.image_tokenizer import ImageTokenizer
from model.processing import VargptProcessor
from training.data.datasets import DIGEST_BYTES
from training.params import StageParams

KEY_LENGTH = 16
# No code is larger than these hold.
LARGEST_CODEBOOK = 1 << 16


def tokenizer_key(tokenizer: ImageTokenizer, processor: VargptProcessor) -> str:
    """A hash of all that decides the codes of a picture: weights, sizes, and how pictures are cut."""
    config = tokenizer.config
    facts = [config.scales, config.image_size, processor.drawn_size, processor.crop_margin]
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        if not name.startswith(("decoder.", "from_latent.")):
            content = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
            digest.update(content.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:KEY_LENGTH]


class CodeCache:
    """Codes by picture; as they were when it was opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts = sorted(folder.glob("*.digests.npy"))
        digests = [np.load(path) for path in self._parts]
        counts = [len(some) for some in digests]
        every = np.concatenate([np.zeros((0, DIGEST_BYTES), np.uint8), *digests])
        keys = _keys(every)
        self._order = np.argsort(keys, kind="stable")
        self._keys, self._digests = keys[self._order], every[self._order]
        self._part = np.repeat(np.arange(len(counts)), counts)[self._order]
        self._row = np.concatenate([np.arange(0), *(np.arange(count) for count in counts)])[self._order]
        self._opened: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[type["CodeCache"], tuple[Path]]:
        # To another process goes the address, not what is mapped.
        return CodeCache, (self.folder,)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, digest: bytes) -> bool:
        return self._find(digest) is not None

    def get(self, digest: bytes) -> Tensor | None:
        """Codes of one picture, (L,); None if they have not been computed."""
        found = self._find(digest)
        if found is None:
            return None
        part = int(self._part[found])
        if part not in self._opened:
            path = self._parts[part]
            name = path.name.replace(".digests.", ".codes.")
            self._opened[part] = np.load(path.with_name(name), mmap_mode="r")
        return torch.from_numpy(self._opened[part][int(self._row[found])].astype(np.int64))

    def _find(self, digest: bytes) -> int | None:
        row = np.frombuffer(digest, np.uint8)
        key = _keys(row[None])[0]
        at = int(np.searchsorted(self._keys, key))
        while at < len(self._keys) and self._keys[at] == key:
            if (self._digests[at] == row).all():
                return at
            at += 1
        return None


def open_codes(
    codes: Path, tokenizer: ImageTokenizer, processor: VargptProcessor, params: StageParams
) -> CodeCache | None:
    """The cache of a stage that reads codes; None for one that reads pixels. UserError when it is empty.

    Args:
        codes: Caches of all tokenizers.
    """
    if not params.cached_codes:
        return None
    cache = CodeCache(codes / tokenizer_key(tokenizer, processor))
    if not len(cache):
        raise UserError(f"no codes of this image tokenizer at {cache.folder}; run: vargpt data encode")
    return cache


def _keys(digests: np.ndarray) -> np.ndarray:
    """The first eight bytes as numbers, by which digests are sorted."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").astype(np.uint64).reshape(-1)


def add_codes(folder: Path, digests: Sequence[bytes], codes_GL: Tensor) -> None:
    """Add codes of some pictures, (G, L); a process that is killed meanwhile leaves nothing that counts."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(b"".join(digests)).hexdigest()[:KEY_LENGTH]
    rows = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    for kind, content in (("codes", codes_GL.cpu().numpy().astype(np.uint16)), ("digests", rows)):
        beside = folder / f"{name}.{os.getpid()}.tmp"
        with beside.open("wb") as file:
            np.save(file, content)
        os.replace(beside, folder / f"{name}.{kind}.npy")
