"""Laws of activations: what a formula says is kept is what autograd saves on a real model."""

import contextlib
import copy

import pytest
import torch

from model import cpu_kernels
from tests.training.planning.models import SHAPES, batch_of, build
from training.planning.activations import Precision, kept_activations
from training.planning.gradients import trace
from training.stages.stage_table import STAGES, freeze_for

BATCH = {"texts": 1, "pictures": 1, "drawings": 1}


def saved_bytes(model, batch):
    """Bytes of all tensors but weights that autograd saves in a forward pass, each storage once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model.loss_sums(**batch).mean()
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def planned(model, stage, units, precision):
    traced = trace(model.config, STAGES[stage].trains, None, units, encodes=False)
    return kept_activations(traced, units, precision, checkpoint_activations=False).total


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_is_what_autograd_saves(shape, stage):
    model = build(shape)
    freeze_for(model, STAGES[stage])
    batch, units = batch_of(model.config, **BATCH)

    assert planned(model, stage, units, Precision(4)) == pytest.approx(saved_bytes(model, batch), rel=0.01)


@pytest.mark.parametrize(("casts", "tolerance"), [(False, 0.01), (True, 0.05)])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_the_same_in_bfloat16_with_and_without_autocast(stage, casts, tolerance, monkeypatch):
    # As on a GPU.
    monkeypatch.setattr(cpu_kernels, "is_bfloat16_on_cpu", lambda _: False)
    model = copy.deepcopy(build("as 7b"))
    freeze_for(model, STAGES[stage])
    for name, parameter in model.named_parameters():
        if not name.startswith("image_tokenizer") and not (casts and parameter.requires_grad):
            parameter.data = parameter.data.bfloat16()
    batch, units = batch_of(model.config, **BATCH)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()

    with torch.autocast("cpu", torch.bfloat16) if casts else contextlib.nullcontext():
        real = saved_bytes(model, batch)

    assert planned(model, stage, units, Precision(2, casts)) == pytest.approx(real, rel=tolerance)
