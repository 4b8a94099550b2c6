"""Laws of state trees: tensor files and JSON preserve a nested state exactly, or the value is named."""

import json

import pytest
import torch

from training.checkpoints.state_trees import flatten_state, unflatten_state


def test_json_preserves_any_nested_state_exactly():
    random = torch.random.get_rng_state()
    tree = {
        "a": (1, [2.5e-17, None, True]),
        3: {"x": "y"},
        "twins.x": torch.ones(1),
        "twins": {"x": torch.zeros(1)},
        "rng": random,
        "nested": {"__tuple__": []},
        "inf": float("inf"),
    }

    tensors, plain = flatten_state(tree, "all")
    back = unflatten_state(tensors, json.loads(json.dumps(plain)))

    assert back.pop("rng") is not None and torch.equal(tensors["all.rng"], random)
    tree.pop("rng")
    assert back.pop("twins.x").item() == tree.pop("twins.x").item() == 1
    assert back.pop("twins")["x"].item() == tree.pop("twins")["x"].item() == 0
    assert back == tree and type(back["a"]) is tuple and list(back) == list(tree)


def test_a_value_that_neither_a_tensor_file_nor_json_preserves_is_named():
    with pytest.raises(ValueError, match=r"optimizer\.hooks\.0 is a function"):
        flatten_state({"hooks": [lambda: None]}, "optimizer")
    with pytest.raises(ValueError, match=r"no tensor 'optimizer\.state\.0'"):
        unflatten_state({}, {"__tensor__": "optimizer.state.0"})
