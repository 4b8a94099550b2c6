"""Nested state, such as an optimizer's, as a flat dictionary of tensors plus JSON, and back without loss."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError

TENSOR, TUPLE, ITEMS = "__tensor__", "__tuple__", "__items__"
# Keys that mark what JSON has no form for: a tensor by name, a tuple, a dictionary with keys that are no
# text.
RESERVED_KEYS = frozenset({TENSOR, TUPLE, ITEMS})
# Compared by exact type: a NumPy float or an enum would come back as something else.
SCALARS = (bool, int, float, str)


def flatten_state(tree: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state into tensors, named by their path below `prefix`, and a JSON value with the rest.

    Tuples, and dictionaries whose keys are whole numbers, are preserved. UserError names a value that neither
    a tensor file nor JSON preserves.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(tree, prefix, tensors)


def _flatten(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        # {"a.b": x, "a": {"b": y}} would give two tensors one name.
        while path in tensors:
            path += "'"
        tensors[path] = node.detach()
        return {TENSOR: path}
    if isinstance(node, Mapping):
        items = [(key, _flatten(value, f"{path}.{key}", tensors)) for key, value in node.items()]
        plain = all(type(key) is str and key not in RESERVED_KEYS for key, _ in items)
        if not plain and any(type(key) not in (str, int) for key, _ in items):
            raise UserError(f"{path} has a key that is neither text nor a whole number: {list(node)[:5]}")
        return dict(items) if plain else {ITEMS: [list(item) for item in items]}
    if type(node) in (list, tuple):
        parts = [_flatten(value, f"{path}.{index}", tensors) for index, value in enumerate(node)]
        return {TUPLE: parts} if type(node) is tuple else parts
    if node is None or type(node) in SCALARS:
        return node
    raise UserError(f"{path} is a {type(node).__name__}, which fits neither a tensor file nor JSON")


def unflatten_state(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The nested state that `flatten_state` split. UserError names a tensor that is missing."""
    if isinstance(tree, list):
        return [unflatten_state(tensors, part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {TENSOR}:
        if tree[TENSOR] not in tensors:
            raise UserError(f"no tensor {tree[TENSOR]!r} among the {len(tensors)} of the checkpoint")
        return tensors[tree[TENSOR]]
    if tree.keys() == {TUPLE}:
        return tuple(unflatten_state(tensors, part) for part in tree[TUPLE])
    if tree.keys() == {ITEMS}:
        return {key: unflatten_state(tensors, value) for key, value in tree[ITEMS]}
    return {key: unflatten_state(tensors, value) for key, value in tree.items()}


def refuse_what_json_alters(node: Any, path: str) -> None:
    """Raise UserError that names the first value which JSON would not give back as it is."""
    if type(node) is dict and all(type(key) is str for key in node):
        for key, value in node.items():
            refuse_what_json_alters(value, f"{path}, {key}")
    elif type(node) is list:
        for index, value in enumerate(node):
            refuse_what_json_alters(value, f"{path}, {index}")
    elif node is not None and type(node) not in SCALARS:
        raise UserError(f"{path}: JSON would alter this {type(node).__name__}; flatten the state first")


def with_own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors demands; tied ones are copied."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone(memory_format=torch.contiguous_format)
        seen.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate
