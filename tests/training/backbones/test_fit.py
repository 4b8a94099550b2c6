"""Laws of `fit`: what a stop, a full disk and a gradient that is not finite do to a training."""

import pytest
import torch

from model.errors import UserError
from training.backbones.backbone_checkpoints import BackboneCheckpoints
from training.backbones.fit import FitSettings, fit
from training.checkpoints import store
from training.errors import Stopped
from training.params import OptimizerParams, ScheduleParams

OPTIMIZER = OptimizerParams(weight_decay=0.05, beta1=0.9, beta2=0.95, clip_norm=1.0)
SCHEDULE = ScheduleParams(steps=12, batch=8, lr=3e-3, muon_lr=2e-2, warmup=2, end=0.0, ema=0.9)


class Line:
    """A linear map that learns to answer zero, and the steps that it has done."""

    def __init__(self, folder, every=100, stop_after=None):
        self.module, self.steps = torch.nn.Linear(2, 2), []
        self.checkpoints = BackboneCheckpoints(
            folder, "same", every, should_stop=lambda: len(self.steps) == stop_after
        )

    def fit(self, nan_at=None):
        def losses(step):
            self.before = self.module.weight.detach().clone()
            square = self.module(torch.ones(2)).square().sum()
            return {"square": square * (float("nan") if step == nan_at else 1.0)}

        settings = FitSettings(
            name="vision",
            optimizer_params=OPTIMIZER,
            seed=0,
            on_step=lambda step, _: self.steps.append(step),
            checkpoints=self.checkpoints,
        )
        fit([self.module], SCHEDULE, settings, losses)


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(*_, **__):
        raise store.SaveError("No space left on device")

    monkeypatch.setattr(store, "save_step", refuse)


def test_a_training_that_is_stopped_saves_every_step(tmp_path):
    line = Line(tmp_path, stop_after=2)

    with pytest.raises(Stopped, match="stopped after 2 of 12 steps"):
        line.fit()

    step, tree = line.checkpoints.load()
    assert step == 2
    assert torch.equal(tree["weights"][0], line.module.weight.detach())


def test_a_gradient_that_is_not_finite_names_backbone_and_step_and_changes_no_weight(tmp_path):
    line = Line(tmp_path)

    with pytest.raises(UserError, match=r"^the gradient of step 3 of vision is nan: lower lr and muon_lr"):
        line.fit(nan_at=3)

    assert torch.equal(line.module.weight, line.before)


def test_a_stop_that_could_not_be_saved_is_a_save_error(tmp_path, full_disk):
    with pytest.raises(store.SaveError, match="stopped after 2 steps, which could not be saved"):
        Line(tmp_path, stop_after=2).fit()


def test_a_checkpoint_that_the_disk_does_not_take_does_not_end_a_training(tmp_path, full_disk):
    line = Line(tmp_path, every=5)

    line.fit()

    assert len(line.steps) == 12


def test_checkpoints_with_another_fingerprint_are_deleted(tmp_path):
    BackboneCheckpoints(tmp_path / "part", "old data", every=1).save(3, {"weights": [torch.ones(2)]})

    assert BackboneCheckpoints(tmp_path / "part", "new data", every=1).load() is None
    assert not (tmp_path / "part").exists()


def test_trained_weights_replace_all_checkpoints(tmp_path):
    checkpoints = BackboneCheckpoints(tmp_path, "same", every=1)
    checkpoints.save(5, {"weights": [torch.zeros(2)]})
    assert checkpoints.load_trained() is None

    checkpoints.save_trained(5, {"weight": torch.ones(2)})

    assert torch.equal(checkpoints.load_trained()["weight"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1
