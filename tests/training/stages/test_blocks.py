"""Laws of blocks: recomputed or compiled they learn the same, and recomputed ones keep less, even frozen."""

import contextlib
import functools

import pytest
import torch

from tests.training.stages.trainers import make_drawings, make_loader, make_model, make_trainer
from tests.training.volume import ROOT
from training.params import load_params
from training.stages.blocks import prepare_blocks
from training.stages.stage_loss import StageLoss
from training.stages.stage_table import freeze_for, stage_named


@contextlib.contextmanager
def bytes_kept_by(module):
    """A list of the bytes of each tensor that a module keeps for the backward pass within the block."""
    kept = []

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    before = module.register_forward_pre_hook(lambda *_: hooks.__enter__())
    after = module.register_forward_hook(lambda *_: hooks.__exit__(None, None, None))
    yield kept
    before.remove()
    after.remove()


def step_of(folder, stage, recomputed):
    """Losses and gradients of one batch, and bytes that the language model keeps."""
    recipe = getattr(load_params(ROOT / "params.yaml", "smoke"), stage)
    recipe = recipe.model_copy(
        update={"batch": 4, "micro_batch": 4, "softness": 0.0, "checkpoint_activations": recomputed}
    )
    model = make_model()
    learning = freeze_for(model, stage_named(stage))
    prepare_blocks(model, recipe)
    [batch] = make_loader(make_drawings(folder, 4), recipe).micro_batches(0)
    with bytes_kept_by(model.language_model.model) as kept:
        losses = StageLoss(model, recipe)(batch)
    losses.sum().backward()
    return losses.detach(), {name: weight.grad for name, weight in learning}, sum(kept)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_recomputed_blocks_keep_less_and_have_the_same_losses_and_gradients(stage, tmp_path):
    """In stages 1 and 3 the language model is frozen and in evaluation mode, and passes gradients on."""
    losses, gradients, kept = step_of(tmp_path, stage, recomputed=False)
    again, gradients_again, kept_again = step_of(tmp_path, stage, recomputed=True)

    assert 0 < kept_again < 0.2 * kept
    assert torch.equal(again, losses)
    assert gradients and gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert (gradient is None) == (gradients_again[name] is None), name
        assert gradient is None or torch.equal(gradients_again[name], gradient), name


@pytest.fixture
def num_compiled(monkeypatch):
    """Compiles without a compiler of C; a call returns how many graphs there are."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_blocks_learn_the_same(recomputed, tmp_path, num_compiled):
    def losses(compiled):
        history = []
        trainer = make_trainer(
            tmp_path,
            make_drawings(tmp_path, 6),
            steps=3,
            compile=compiled,
            checkpoint_activations=recomputed,
            text_weight=1.0,
        )
        trainer.run(0, history.append, dict)
        return [metrics.losses | {"norm": metrics.gradient_norm} for metrics in history]

    expected = losses(False)
    assert num_compiled() == 0
    found = losses(True)

    assert num_compiled() > 0
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
