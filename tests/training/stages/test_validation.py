"""Laws of validation: the same samples each time, on any number of processes, no trace in training."""

import pytest
import torch

from tests.training.stages.trainers import make_drawings, make_trainer
from training.params import LoraParams
from training.stages import validation
from training.stages.validation import Validation

DROPOUT = LoraParams(rank=4, alpha=8.0, dropout=0.5, modules=["visual_decoder"])


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a trainer of stage 3 with as many samples to train on as are held out."""
    monkeypatch.setattr(validation, "HELD_OUT_SAMPLES", 6)
    samples = make_drawings(tmp_path, 12)
    return lambda **changes: make_trainer(tmp_path, samples[:6], held_out=samples[6:], **changes)


def validation_of(trainer, engine=None):
    return Validation(engine or trainer.engine, trainer.model, trainer.loader)


def test_the_same_samples_are_measured_each_time(make):
    trainer = make(steps=2, lr=1e-12)
    measured = validation_of(trainer)
    first = measured.losses()
    trainer.run(0, lambda metrics: None, dict)

    # To the last digit but for weights that have hardly moved; other samples differ in the second.
    assert measured.losses() == pytest.approx(first, rel=1e-5)
    assert validation_of(trainer).losses() == measured.losses()
    assert first["image"] > 0


def test_what_is_measured_is_held_out_and_not_what_is_trained_on(make, tmp_path):
    trainer = make(drop_prompt=0.0, code_corruption=0.0)
    samples = make_drawings(tmp_path, 12)
    other = make_trainer(tmp_path, samples[:6], held_out=samples[:6])

    assert validation_of(trainer).losses() != pytest.approx(validation_of(other).losses(), rel=1e-4)


@pytest.mark.parametrize("training", [{"drop_prompt": 1.0, "code_corruption": 1.0}, {"pack_tokens": 512}])
def test_how_samples_are_trained_on_does_not_change_how_they_are_measured(training, make):
    plain = {"drop_prompt": 0.0, "code_corruption": 0.0}
    expected = validation_of(make(**plain)).losses()

    assert validation_of(make(**plain | training)).losses() == pytest.approx(expected, rel=1e-5)


class ShareOfProcesses:
    """One of several processes, of which the others have already said what they add to sums."""

    def __init__(self, engine, rank, world_size, others=()):
        self._engine, self._others, self.told = engine, others, []
        self.rank, self.world_size, self.device = rank, world_size, engine.device

    def forward(self, batch, is_last=True):
        return self._engine.forward(batch, is_last)

    def total(self, values):
        self.told.append(values)
        return sum((other.told[len(self.told) - 1] for other in self._others), values)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_measures_what_one_does(world_size, make):
    trainer = make()
    alone = validation_of(trainer).losses()

    others = [ShareOfProcesses(trainer.engine, rank, world_size) for rank in range(1, world_size)]
    for other in others:
        assert validation_of(trainer, other).losses() != pytest.approx(alone, rel=1e-5)
    main = ShareOfProcesses(trainer.engine, 0, world_size, others)

    assert validation_of(trainer, main).losses() == pytest.approx(alone, rel=1e-5)


def test_training_goes_on_as_if_nothing_had_been_measured(make):
    trainer = make(lora=DROPOUT)
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    assert set(modes.values()) == {True, False}
    random, weights = torch.get_rng_state(), [weight.clone() for _, weight in trainer.learning]

    losses = validation_of(trainer).losses()

    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random), "dropout would have drawn random numbers"
    assert all(weight.grad is None for _, weight in trainer.learning)
    assert all(torch.equal(*pair) for pair in zip(weights, [w for _, w in trainer.learning], strict=True))
    assert validation_of(trainer).losses() == losses


def test_modes_are_restored_where_measuring_fails(make, monkeypatch):
    trainer = make()
    modes = [module.training for module in trainer.model.modules()]

    def fail(batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer.engine, "forward", fail)
    with pytest.raises(RuntimeError):
        validation_of(trainer).losses()
    assert [module.training for module in trainer.model.modules()] == modes


def test_a_step_tells_what_is_held_out_as_often_as_the_recipe_says(make):
    history = []
    make(validate_every=2).run(0, history.append, dict)

    assert [bool(metrics.validation) for metrics in history] == [False, True] * 3


def test_nothing_is_measured_where_nothing_is_held_out(tmp_path):
    trainer = make_trainer(tmp_path, make_drawings(tmp_path, 2))

    assert validation_of(trainer).losses() == {}
