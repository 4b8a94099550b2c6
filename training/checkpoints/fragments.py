"""Parts of a checkpoint: each process writes the elements that it owns, and reads those that it needs from
all parts.

A part is a safetensors file. Its tensors are called `KIND/FIRST/NAME`: elements of a parameter from the first
one on, of its weight or of one of its optimizer states.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from model.errors import UserError
from training.checkpoints.slices import Slice

PART = "part_{rank:05}.safetensors"
PARTS = "part_*.safetensors"


def fragment_name(kind: str, part: Slice) -> str:
    """The name of a slice's elements in a part."""
    return f"{kind}/{part.first}/{part.name}"


def write_part(path: Path, fragments: Mapping[str, Tensor]) -> str:
    """Write float32 tensors of one dimension, on the CPU, to a flushed safetensors file; its SHA-256.

    Unlike the library's own writer it hashes what it writes, and lets other threads of Python work meanwhile.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in fragments.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for data in (len(text).to_bytes(8, "little"), text, *map(_bytes_of, fragments.values())):
            digest.update(data)
            _write_all(file.fileno(), data)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    return memoryview(tensor.numpy().view(np.uint8))


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    """All of it: one call of the kernel takes at most 2 GB."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


@dataclass(frozen=True)
class Fragment:
    """Where some elements of a parameter's state lie: a file, the first, and the one after the last."""

    file: Path
    name: str
    first: int
    end: int


class Fragments:
    """All parts of one checkpoint, read lazily."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[tuple[str, str], list[Fragment]] = {}
        self._kinds: dict[str, set[str]] = {}
        self._open = {path: safe_open(path, "pt") for path in sorted(folder.glob(PARTS))}
        for path, file in self._open.items():
            for name in file.offset_keys():
                kind, first, parameter = name.split("/", 2)
                count = file.get_slice(name).get_shape()[0]
                fragment = Fragment(path, name, int(first), int(first) + count)
                self._found.setdefault((kind, parameter), []).append(fragment)
                self._kinds.setdefault(parameter, set()).add(kind)

    @property
    def kinds(self) -> Mapping[str, set[str]]:
        """The kinds of state of every parameter, by its name."""
        return self._kinds

    @property
    def sizes(self) -> Mapping[tuple[str, str], int]:
        """How many elements there are, by kind of state and name of the parameter."""
        return {key: max(part.end for part in parts) for key, parts in self._found.items()}

    def read(self, kind: str, part: Slice, out: Tensor) -> None:
        """Fill a tensor with a slice's elements. UserError when some are in no part."""
        missing, end = part.count, part.first + part.count
        for found in self._found.get((kind, part.name), ()):
            first, last = max(found.first, part.first), min(found.end, end)
            if first < last:
                values = self._open[found.file].get_slice(found.name)[
                    first - found.first : last - found.first
                ]
                out[first - part.first : last - part.first].copy_(values)
                missing -= last - first
        if missing:
            raise UserError(
                f"{self.folder} lacks {missing} of {part.count} elements of {kind} of {part.name}"
            )

    def whole(self, kind: str, parameter: str, shape: Iterable[int]) -> Tensor:
        """One parameter's state, in float32, of this shape."""
        out = torch.empty(*shape)
        self.read(kind, Slice(parameter, 0, out.numel(), 0, 0), out.view(-1))
        return out
