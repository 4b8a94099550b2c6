"""Laws of the checkpoint store: saving is atomic, damage is detected, and the step before is used."""

import pytest
import torch
from torch import nn

from tests.training.checkpoints.parts import assert_is_step, names, save_steps
from training.checkpoints.state_trees import flatten_state, unflatten_state
from training.checkpoints.step_folders import committed_steps
from training.checkpoints.store import load_latest, load_step, save_step


def test_the_newest_step_comes_back_bit_for_bit(tmp_path):
    save_steps(tmp_path, 9, 10)

    assert_is_step(load_latest(tmp_path), 10)


def test_an_absent_or_empty_folder_has_no_step(tmp_path):
    assert load_latest(tmp_path / "nowhere") is None
    assert load_latest(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    save_steps(tmp_path, 10, 20, 30, 100, keep=2)

    assert names(tmp_path) == ["step_100", "step_30"]


@pytest.mark.parametrize("keep", [3, 4, 5, 9])
def test_none_is_deleted_while_there_are_no_more_than_are_kept(tmp_path, keep):
    save_steps(tmp_path, 1, 2, 3, keep=keep)

    assert names(tmp_path) == ["step_1", "step_2", "step_3"]


def test_looking_at_steps_leaves_alone_one_that_is_being_written(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "step_2.tmp").mkdir()

    assert [path.name for path in committed_steps(tmp_path)] == ["step_1"]
    assert names(tmp_path) == ["step_1", "step_2.tmp"]


def test_the_step_just_saved_is_kept_even_beside_higher_ones(tmp_path):
    save_steps(tmp_path, 50, 60, 5, keep=1)

    assert names(tmp_path) == ["step_5"]


def test_a_step_saved_twice_holds_what_was_saved_last(tmp_path):
    save_step(tmp_path, 4, {"weight": torch.zeros(2)}, {})
    save_steps(tmp_path, 4)

    assert_is_step(load_latest(tmp_path), 4)
    assert names(tmp_path) == ["step_4"]


@pytest.mark.parametrize("state", [{"pair": (1, 2)}, {"by_number": {1: 2}}, {"tensor": torch.ones(1)}])
def test_a_state_that_json_would_alter_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match=r"state of step 1, .*JSON would alter"):
        save_step(tmp_path, 1, {}, state)


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (1, 0)])
def test_impossible_numbers_are_refused_by_name(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"step={step}, keep={keep}"):
        save_step(tmp_path, step, {}, {}, keep=keep)


def test_a_step_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no step 7"):
        load_step(tmp_path, 7)


def test_tied_and_strided_tensors_come_back_with_their_values(tmp_path):
    base = torch.randn(4, 6)
    tied = {"a": base, "b": base, "column": base[:, 1], "turned": base.mT, "head": base[:2], "none": base[:0]}
    save_step(tmp_path, 1, tied, {})

    _, loaded, _ = load_latest(tmp_path)

    assert all(torch.equal(loaded[name], tensor) for name, tensor in tied.items())


def net_and_adamw(amsgrad: bool = False) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).to(torch.bfloat16))
    groups = [
        {"params": net[0].parameters(), "weight_decay": 0.0},
        {"params": net[1].parameters(), "lr": 1e-4},
    ]
    return net, torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), amsgrad=amsgrad)


def train_one_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net[1](net[0](torch.ones(5, 3)).to(torch.bfloat16)).float().square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_resumed_from_disk_takes_the_same_steps(tmp_path, amsgrad):
    net, optimizer = net_and_adamw(amsgrad)
    train_one_step(net, optimizer)
    tensors, tree = flatten_state(optimizer.state_dict(), "optimizer")
    save_step(
        tmp_path, 1, tensors | {f"net.{k}": v for k, v in net.state_dict().items()}, {"optimizer": tree}
    )
    _, loaded, state = load_latest(tmp_path)
    other, other_optimizer = net_and_adamw(amsgrad)
    other.load_state_dict({k: loaded[f"net.{k}"] for k in net.state_dict()})
    other_optimizer.load_state_dict(unflatten_state(loaded, state["optimizer"]))

    for _ in range(3):
        train_one_step(net, optimizer)
        train_one_step(other, other_optimizer)

    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert str(optimizer.state_dict()) == str(other_optimizer.state_dict())
