"""Weights on disk, read and written tensor by tensor, so that memory holds one tensor whatever there is in
all.

Read are safetensors files, single or sharded, and PyTorch's `.pth`; no code in a file is run. Written are the
files that `save_pretrained` of transformers would write, byte by byte.
"""

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import UserError, is_outage

INDEX = "model.safetensors.index.json"
MAX_SHARD = "5GB"
# Names of types in safetensors files, in the order in which a file holds its tensors: widest first.
_TYPE_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _TYPE_NAMES.items()}
_HEADER_ALIGNMENT = 8
# A mapped `.pth` is mapped anew after so many bytes, because pages once read stay in memory.
_REMAP_BYTES = 256 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored, and what it is like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.empty(self.shape, dtype=self.dtype, device="meta").nbytes


class WeightFiles(Protocol):
    """Tensors by name in one file or in several; their content is read when it is asked for."""

    path: Path
    tensors: Mapping[str, StoredTensor]

    def read(self, name: str) -> Tensor:
        """The content of one tensor, on the CPU.

        UserError when the file is gone or damaged, OSError when a disk failed.
        """
        ...


def open_weights(path: Path) -> WeightFiles:
    """The weights of a safetensors file, of a folder of such files, or of a published `.pth`.

    Raises:
        UserError: there are none, or a file is damaged or holds anything else than tensors.
        OSError: a disk failed.
    """
    path = Path(path)
    if path.is_dir():
        return SafetensorsFiles(path, _files_in(path))
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        return SafetensorsFiles(path, [path])
    if path.suffix == ".pth":
        return PthFile(path)
    raise UserError(f"weights must be .safetensors or a published .pth, got {path.name}")


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder that its index names, or all of them where it has none."""
    index = folder / INDEX
    if not index.is_file():
        if files := sorted(folder.glob("*.safetensors")):
            return files
        raise UserError(f"{folder} holds no .safetensors files")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weights: {error!r}") from None
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, though {index.name} names it")
    return [folder / name for name in names]


@contextmanager
def opened_safetensors(file: Path) -> Iterator[safe_open]:
    """A safetensors file, to be read instead of mapped.

    Raises:
        UserError: it is not there, or damaged.
        OSError: a disk failed.
    """
    try:
        # Of whatever it cannot open, safetensors says that it is not there.
        file.open("rb").close()
        with safe_open(file, framework="pt", backend="pread") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise reading_error(file, error) from error


def reading_error(path: Path, error: Exception) -> UserError | OSError:
    """What to raise for an error of a library that reads a file or folder."""
    return (OSError if is_outage(error) else UserError)(f"{path} cannot be read: {error}")


class SafetensorsFiles:
    """Weights of safetensors files, read instead of mapped: mapped pages would count as memory."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, stored in _stored_in(file).items():
                if name in self.tensors:
                    raise UserError(f"{name} is in {self.tensors[name].file} and in {file}")
                self.tensors[name] = stored

    def read(self, name: str) -> Tensor:
        with opened_safetensors(self.tensors[name].file) as opened:
            return opened.get_tensor(name)


def _stored_in(file: Path) -> dict[str, StoredTensor]:
    with opened_safetensors(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    for name, (_, kind) in found.items():
        if kind not in _TYPES:
            raise UserError(f"{name} in {file} is of type {kind}, which is not supported")
    return {name: StoredTensor(file, shape, _TYPES[kind]) for name, (shape, kind) in found.items()}


class PthFile:
    """Weights of a file of `torch.save`, mapped; files of PyTorch before 1.6 are read whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_mapped = zipfile.is_zipfile(path)
        self._bytes_read = 0
        self._weights = self._load()
        self.tensors = {
            name: StoredTensor(path, tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._weights.items()
        }

    def read(self, name: str) -> Tensor:
        if self._is_mapped and self._bytes_read > _REMAP_BYTES:
            self._weights, self._bytes_read = self._load(), 0
        tensor = self._weights[name]
        self._bytes_read += tensor.nbytes
        return tensor

    def _load(self) -> dict[str, Tensor]:
        try:
            weights = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._is_mapped)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError) as error:
            raise reading_error(self.path, error) from error
        if not isinstance(weights, dict):
            raise UserError(f"{self.path} holds a {type(weights).__name__} instead of tensors by name")
        for name, value in weights.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise UserError(f"{self.path} holds more than tensors: {name!r} is of type {kind}")
        return weights


def write_weights(
    folder: Path,
    layout: Mapping[str, Tensor],
    tensor_of: Callable[[str], Tensor],
    max_shard: int | str = MAX_SHARD,
) -> dict[str, str]:
    """Write a model's tensors, each when its turn has come; the SHA-256 of every file by name.

    Files are on the disk when this returns.

    Args:
        layout: All tensors by name, on the meta device, in the model's order.
        tensor_of: Called once for each name, in another order; gives the tensor that the layout describes.
        max_shard: No file is larger, unless a single tensor is.
    """
    split = split_torch_state_dict_into_shards(
        dict(layout), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard
    )
    hashes = {
        file: _write_file(folder / file, {name: layout[name] for name in names}, tensor_of)
        for file, names in split.filename_to_tensors.items()
    }
    if split.is_sharded:
        count = sum(tensor.numel() for tensor in layout.values())
        metadata = {"total_parameters": count, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
    return hashes


def _write_file(path: Path, layout: Mapping[str, Tensor], tensor_of: Callable[[str], Tensor]) -> str:
    order = list(_TYPE_NAMES)
    names = sorted(layout, key=lambda name: (order.index(layout[name].dtype), name))
    digest = hashlib.sha256()

    def put(data: bytes | memoryview) -> None:
        file.write(data)
        digest.update(data)

    with path.open("wb") as file:
        put(_header({name: layout[name] for name in names}))
        for name in names:
            put(_bytes_of(name, layout[name], tensor_of(name)))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _header(layout: Mapping[str, Tensor]) -> bytes:
    """Length and header of a safetensors file with these tensors, in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in layout.items():
        begin, end = end, end + tensor.nbytes
        kind, shape = _TYPE_NAMES[tensor.dtype], list(tensor.shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(name: str, expected: Tensor, tensor: Tensor) -> memoryview:
    assert tensor.shape == expected.shape and tensor.dtype == expected.dtype, name
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
