"""Laws of the training loop under faults: non-finite gradients, steps without targets, a full disk."""

import logging
import math

import pytest
import torch
from PIL import Image

from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.volume import ROOT
from training.checkpoints import store
from training.checkpoints.step_folders import SaveError
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.engines.make import make_engine
from training.errors import Stopped
from training.launching import stage_process
from training.params import load_params
from training.stages import checkpointing
from training.stages.stage_table import freeze_for, stage_named
from training.stages.trainer import Trainer

CONFIG = preset("tiny")


@pytest.fixture
def make_samples(tmp_path):
    """Makes samples with or without a drawing."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")

    def sample(index, has_drawing):
        reply = Message("assistant", "Here <image_gen>" if has_drawing else "Here")
        images = (ImageRef(tmp_path / "red.png"),) if has_drawing else ()
        return Sample(f"id-{index}", (Message("user", "Draw"), reply), images, "set", {})

    return lambda *have_drawings: [sample(index, has) for index, has in enumerate(have_drawings)]


@pytest.fixture
def make_trainer(tmp_path):
    """Makes a Trainer of stage 3 on samples of one dataset."""
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG)
    model.visual_decoder.initialize()
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer(["Draw Here"], CONFIG))
    stage = stage_named("stage3")
    params = load_params(ROOT / "params.yaml", "smoke").model_copy(update={"precision": "no"})

    def make(samples, should_stop=lambda: False, **changes):
        few = {"steps": 6, "batch": 2, "micro_batch": 1, "warmup": 1, "drop_prompt": 0.0, "max_skipped": 2}
        chosen = params.stage3.model_copy(update={**few, **changes})
        tokenizer = CONFIG.image_tokenizer_config
        mixture = Mixture([(samples, 1.0)], 0)
        loader = BatchLoader(mixture, processor, tokenizer, chosen, 0, BadRecordLog(), bad_record_share=1.0)
        learning, folder = freeze_for(model, stage), tmp_path / "checkpoints"
        return Trainer(
            make_engine(chosen, params), model, learning, loader, chosen, params, folder, should_stop
        )

    return make


def make_gradients_infinite(trainer, steps):
    """Let the gradient of one weight be infinite at these steps; the list that metrics must be added to."""
    history = []
    weight = trainer.learning[0][1]
    weight.register_hook(lambda gradient: gradient * (math.inf if len(history) in steps else 1.0))
    return history


def copy_of_weights(trainer):
    return [parameter.detach().clone() for _, parameter in trainer.learning]


def test_a_gradient_that_is_not_finite_changes_no_weight_and_names_the_records(
    make_trainer, make_samples, caplog
):
    trainer = make_trainer(make_samples(True, True, True))
    history, before = make_gradients_infinite(trainer, steps={0}), copy_of_weights(trainer)

    def on_step(metrics):
        if not history:
            assert all(torch.equal(*pair) for pair in zip(before, copy_of_weights(trainer), strict=True))
        history.append(metrics)

    with caplog.at_level(logging.WARNING):
        trainer.run(0, on_step, dict)

    assert [metrics.num_skipped for metrics in history] == [1] * 6
    assert all(parameter.isfinite().all() for _, parameter in trainer.learning)
    assert not all(torch.equal(*pair) for pair in zip(before, copy_of_weights(trainer), strict=True))
    [record] = [record for record in caplog.records if "step skipped" in record.message]
    assert "the gradient of step 0 is" in record.message
    assert sum(name in record.message for name in ("set/0 (id-0)", "set/1 (id-1)", "set/2 (id-2)")) == 2


def test_more_skipped_steps_in_a_row_than_the_limit_stop_the_run_and_fewer_do_not(make_trainer, make_samples):
    trainer = make_trainer(make_samples(True, True))
    history = make_gradients_infinite(trainer, steps={0, 1, 3, 4})
    trainer.run(0, history.append, dict)
    assert history[-1].num_skipped == 4

    trainer = make_trainer(make_samples(True, True))
    history = make_gradients_infinite(trainer, steps={2, 3, 4})
    with pytest.raises(UserError, match=r"3 steps in a row had no finite gradient.*set/0 \(id-0\)"):
        trainer.run(0, history.append, dict)
    assert len(history) == 4


def test_a_weight_that_is_not_finite_is_never_saved_and_earlier_checkpoints_stay(make_trainer, make_samples):
    trainer = make_trainer(make_samples(True))
    assert trainer.save(1, {})
    with torch.no_grad():
        trainer.learning[0][1].view(-1)[0] = math.nan

    with pytest.raises(store.NonFiniteError, match=r"step 2 is not saved: \S*weight/\S* has values"):
        trainer.save(2, {})
    assert store.newest_step(trainer.checkpoints.folder) == 1


def test_a_step_without_drawings_changes_nothing_where_only_image_loss_has_a_weight(
    make_trainer, make_samples
):
    trainer = make_trainer(make_samples(False, False))
    before, history = copy_of_weights(trainer), []

    trainer.run(0, history.append, dict)

    assert len(history) == 6
    assert all(torch.equal(*pair) for pair in zip(before, copy_of_weights(trainer), strict=True))


def test_a_micro_batch_without_drawings_does_not_change_the_gradient_of_the_others(
    make_trainer, make_samples
):
    history = []
    for micro_batch in (1, 2):
        trainer = make_trainer(make_samples(True, False), micro_batch=micro_batch, steps=1)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.run(0, history.append, dict)
        trainer.model.load_state_dict(before)

    separate, together = history
    assert separate.losses["image"] == pytest.approx(together.losses["image"], rel=1e-5)
    assert separate.gradient_norm == pytest.approx(together.gradient_norm, rel=1e-4) != 0


def test_a_stop_that_could_not_be_saved_is_a_save_error(make_trainer, make_samples, monkeypatch):
    calls = []

    def should_stop():
        calls.append(None)
        return len(calls) > 2

    trainer = make_trainer(make_samples(True), should_stop)
    with pytest.raises(Stopped):
        trainer.run(0, lambda metrics: None, dict)

    calls.clear()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpointing, "write_part", full_disk)
    with pytest.raises(SaveError, match="stopped after 2 steps, which could not be saved"):
        trainer.run(0, lambda metrics: None, dict)


def test_a_disk_is_given_up_by_what_it_took_before_and_by_what_it_is_given(make_trainer, make_samples):
    checkpoints = make_trainer(make_samples(True)).checkpoints

    assert checkpoints.patience(0) == 600
    assert checkpoints.patience(80 * 10**9) == 8000
    checkpoints.write_seconds = 1000.0
    assert checkpoints.patience(80 * 10**9) == 10_000


@pytest.mark.parametrize(
    ("error", "code"),
    [(SaveError("full"), 138), (OSError("gone"), 138), (UserError("wrong"), 2), (Stopped("so"), 143)],
)
def test_the_exception_that_ended_a_stage_decides_its_exit_code(monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(stage_process, "train", fail)

    assert stage_process.main(["stage1"]) == code
