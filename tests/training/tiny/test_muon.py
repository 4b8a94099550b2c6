"""Laws of the tiny optimizer: Muon for weight matrices, AdamW for the rest, one state of both."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import training.precision
from training.optimization.schedule import set_learning_rates
from training.params import OptimizerParams, ScheduleParams
from training.tiny.muon import Float32Muon, make_tiny_optimizer

OPTIMIZER = OptimizerParams(weight_decay=0.05, beta1=0.9, beta2=0.95, clip_norm=1.0)


def schedule(muon_lr):
    return ScheduleParams(steps=10, batch=4, lr=1e-2, muon_lr=muon_lr, warmup=2, end=0.0, ema=0.9)


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def net(request):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4), nn.Embedding(4, 4)
    return nn.ModuleList(parts).to(memory_format=request.param)


def optimizer_of(net, muon_lr=3e-2):
    return make_tiny_optimizer([net], schedule(muon_lr), OPTIMIZER)


def train_steps(net, optimizer, first, last):
    for step in range(first, last):
        set_learning_rates(optimizer.param_groups, step, schedule(3e-2))
        generator = torch.Generator().manual_seed(step)
        pixels = torch.rand(5, 3, 6, 6, generator=generator)
        optimizer.zero_grad()
        out = net[2](net[1](net[0](pixels))) + net[3](torch.arange(5) % 4)
        out.square().mean().backward()
        optimizer.step()


def test_every_parameter_learns_and_each_group_by_its_own_peak(net):
    before = copy.deepcopy(net.state_dict())
    optimizer = optimizer_of(net)

    train_steps(net, optimizer, 0, 2)

    assert all(not torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert {group["peak"]: group["lr"] for group in optimizer.param_groups} == {1e-2: 1e-2, 3e-2: 3e-2}


def test_the_update_of_a_matrix_is_nearly_orthogonal_and_tables_are_left_to_adamw(net):
    weight = net[2].weight
    before = weight.detach().clone()
    optimizer = optimizer_of(net)

    train_steps(net, optimizer, 0, 1)

    singular_values = torch.linalg.svdvals(weight.detach() - before)
    assert singular_values.max() < 3 * singular_values.min()
    assert not any(parameter is net[3].weight for parameter in optimizer.matrices)


def test_the_memory_format_of_a_convolution_does_not_change_what_is_learned():
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4), nn.Embedding(4, 4)])
        net.to(memory_format=layout)
        train_steps(net, optimizer_of(net), 0, 3)
        ends.append(net[0].weight.detach().contiguous())

    torch.testing.assert_close(*ends, atol=2e-3, rtol=2e-2)


def test_a_restored_state_takes_the_same_steps_bit_for_bit(net):
    twin = copy.deepcopy(net)
    optimizer = optimizer_of(net)
    train_steps(net, optimizer, 0, 6)

    first = optimizer_of(twin)
    train_steps(twin, first, 0, 3)
    second = optimizer_of(twin)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train_steps(twin, second, 3, 6)

    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_model_whose_parameters_moved_in_memory_still_learns(net):
    optimizer = optimizer_of(net)
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()
    before = net[2].weight.detach().clone()

    train_steps(net, optimizer, 0, 1)

    assert not torch.equal(before, net[2].weight)


def test_with_a_muon_rate_of_zero_everything_is_adamw(net):
    assert isinstance(optimizer_of(net, muon_lr=0.0), torch.optim.AdamW)


class Products(TorchDispatchMode):
    """The precisions of all matrix products within."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen.add(out.dtype)
        return out


@pytest.mark.parametrize(("is_quick", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_matrices_are_made_orthogonal_in_the_precision_that_the_processor_multiplies(
    net, monkeypatch, is_quick, precision
):
    monkeypatch.setattr(training.precision, "_multiplies_bfloat16", lambda: is_quick)
    optimizer = optimizer_of(net)
    train_steps(net, optimizer, 0, 1)

    with Products() as products:
        optimizer.optimizers["muon"].step()

    assert products.seen == {precision}


def test_a_step_in_float32_is_that_of_torch_without_its_rounding(net, monkeypatch):
    twin = copy.deepcopy(net)
    for copied, is_quick in ((net, False), (twin, True)):
        monkeypatch.setattr(training.precision, "_multiplies_bfloat16", lambda is_quick=is_quick: is_quick)
        train_steps(copied, optimizer_of(copied), 0, 2)

    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("rank", [4, 32])
def test_without_bfloat16_an_update_of_low_rank_is_the_one_that_torch_computes_with_it(rank):
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    gradient = torch.randn(64, rank) @ torch.logspace(0, -4, rank).diag() @ torch.randn(rank, 96)
    updates = []
    for kind in (torch.optim.Muon, Float32Muon):
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient.clone()
        kind([parameter], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        updates.append(parameter.detach() - weight)

    theirs, ours = updates
    assert (ours - theirs).norm() < 0.03 * theirs.norm()
