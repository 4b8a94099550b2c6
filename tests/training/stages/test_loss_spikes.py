"""Laws of loss spikes: one is flagged with the records of its batch, the ordinary noise of losses is not."""

import logging
import math
import random

import pytest

from tests.training.stages.trainers import make_drawings, make_trainer
from training.stages.step_metrics import LEAST_LOSSES, SpikeDetector

NOISE = 0.1


def noisy_losses(count, seed=0):
    """Losses that fall as those of a training do, with the noise of batches."""
    rng = random.Random(seed)
    return [2.0 + 5.0 * math.exp(-step / 200) + rng.gauss(0, NOISE) for step in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_noise_is_no_spike(seed):
    detector = SpikeDetector()

    assert not any(detector.is_spike(loss) for loss in noisy_losses(2000, seed))


@pytest.mark.parametrize("spike", [20.0, math.inf, math.nan])
def test_a_loss_far_above_those_before_is_a_spike_and_so_is_the_next_one(spike):
    detector = SpikeDetector()
    losses = noisy_losses(300)
    losses[100] = losses[101] = spike

    assert [step for step, loss in enumerate(losses) if detector.is_spike(loss)] == [100, 101]


def test_a_loss_that_suddenly_falls_is_no_spike():
    detector = SpikeDetector()
    for loss in noisy_losses(100):
        detector.is_spike(loss)

    assert not detector.is_spike(0.01)


def test_the_first_losses_of_a_training_are_never_spikes():
    detector = SpikeDetector()

    assert not any(detector.is_spike(10.0**step) for step in range(LEAST_LOSSES))


def test_a_training_names_the_records_of_a_spike_and_of_nothing_else(tmp_path, monkeypatch, caplog):
    spike = LEAST_LOSSES + 2
    samples = make_drawings(tmp_path, 8)
    trainer = make_trainer(tmp_path, samples, steps=spike + 3, micro_batch=2, lr=1e-6, drop_prompt=0.0)
    history, forward = [], trainer.engine.forward
    monkeypatch.setattr(
        trainer.engine,
        "forward",
        lambda batch, is_last: forward(batch, is_last) * (50.0 if len(history) == spike else 1.0),
    )

    with caplog.at_level(logging.WARNING):
        trainer.run(0, history.append, dict)

    assert [metrics.step for metrics in history if metrics.is_spike] == [spike]
    [line] = [record.message for record in caplog.records if "is a spike" in record.message]
    assert line.startswith(f"the loss of step {spike}, ")
    assert line.endswith(f"its records: {', '.join(trainer.loader.record_names(spike))}")
    assert line.count("(id-") == 2
