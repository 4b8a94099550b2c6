"""Laws of the training loop when something is wrong: with a gradient, a batch, a disk, or the number of
processes.
"""

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
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.errors import Stopped
from training.launching import stage_process
from training.params import load_params
from training.stages.stage_table import freeze_for, stage_named
from training.stages.trainer import Trainer, make_accelerator

CONFIG = preset("tiny")


@pytest.fixture
def samples(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")

    def sample(index, is_drawn):
        reply = Message("assistant", "Here <image_gen>" if is_drawn else "Here")
        images = (ImageRef(tmp_path / "red.png"),) if is_drawn else ()
        return Sample(f"id-{index}", (Message("user", "Draw"), reply), images, "set", {})

    return lambda *drawn: [sample(index, is_drawn) for index, is_drawn in enumerate(drawn)]


@pytest.fixture
def trainer(tmp_path):
    """Makes a Trainer of stage 3 on samples of one dataset."""
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG)
    model.visual_decoder.initialize()
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer(["Draw Here"], CONFIG))
    stage = stage_named("stage3")
    params = load_params(ROOT / "params.yaml", "smoke")

    def make(samples, should_stop=lambda: False, **changes):
        few = {"steps": 6, "batch": 2, "micro_batch": 1, "warmup": 1, "drop_prompt": 0.0, "max_skipped": 2}
        chosen = params.stage3.model_copy(update={**few, **changes})
        tokenizer = CONFIG.image_tokenizer_config
        mixture = Mixture([(samples, 1.0)], 0)
        batches = BatchLoader(mixture, processor, tokenizer, chosen, 0, BadRecordLog(), bad_record_share=1.0)
        return Trainer(
            make_accelerator("no"),
            model,
            freeze_for(model, stage),
            batches,
            chosen,
            params.optimizer,
            0,
            tmp_path / "checkpoints",
            should_stop,
        )

    return make


def spoil_gradients(trainer, steps):
    """Let the gradient of one weight be infinite at these steps; what is told of every step."""
    reports = []
    weight = trainer.learning[0]
    weight.register_hook(lambda gradient: gradient * (math.inf if len(reports) in steps else 1.0))
    return reports


def learned(trainer):
    return [parameter.detach().clone() for parameter in trainer.learning]


def test_a_gradient_that_is_not_finite_changes_no_weight_and_names_the_records(trainer, samples, caplog):
    run = trainer(samples(True, True, True))
    reports, before = spoil_gradients(run, steps={0}), learned(run)

    def on_step(report):
        if not reports:
            assert all(torch.equal(*pair) for pair in zip(before, learned(run), strict=True))
        reports.append(report)

    with caplog.at_level(logging.WARNING):
        run.run(0, on_step, dict)

    assert [report.num_skipped for report in reports] == [1] * 6
    assert all(parameter.isfinite().all() for parameter in run.learning)
    assert not all(torch.equal(*pair) for pair in zip(before, learned(run), strict=True))
    [record] = [record for record in caplog.records if "step skipped" in record.message]
    assert "the gradient of step 0 is" in record.message
    assert sum(name in record.message for name in ("set/0 (id-0)", "set/1 (id-1)", "set/2 (id-2)")) == 2


def test_more_such_steps_in_a_row_than_allowed_stop_the_run_and_single_ones_do_not(trainer, samples):
    run = trainer(samples(True, True))
    reports = spoil_gradients(run, steps={0, 1, 3, 4})
    run.run(0, reports.append, dict)
    assert reports[-1].num_skipped == 4

    run = trainer(samples(True, True))
    reports = spoil_gradients(run, steps={2, 3, 4})
    with pytest.raises(UserError, match=r"3 steps in a row had no finite gradient.*set/0 \(id-0\)"):
        run.run(0, reports.append, dict)
    assert len(reports) == 4


def test_a_weight_that_is_not_finite_is_never_saved_and_checkpoints_before_stay(trainer, samples):
    run = trainer(samples(True))
    assert run.save(1, {})
    with torch.no_grad():
        run.learning[0].view(-1)[0] = math.nan

    with pytest.raises(store.NonFiniteError, match=r"step 2 is not saved: \S*weights\S* has values"):
        run.save(2, {})
    assert store.newest_step(run.checkpoints) == 1


def test_a_step_without_drawings_learns_nothing_in_a_stage_that_only_draws(trainer, samples):
    run = trainer(samples(False, False))
    before, reports = learned(run), []

    run.run(0, reports.append, dict)

    assert len(reports) == 6
    assert all(torch.equal(*pair) for pair in zip(before, learned(run), strict=True))


def test_a_micro_batch_without_drawings_changes_nothing_beside_one_that_has_some(trainer, samples):
    reports = []
    for micro_batch in (1, 2):
        run = trainer(samples(True, False), micro_batch=micro_batch, steps=1)
        before = {name: value.clone() for name, value in run.loss.state_dict().items()}
        run.run(0, reports.append, dict)
        run.loss.load_state_dict(before)

    apart, together = reports
    assert apart.losses["image"] == pytest.approx(together.losses["image"], rel=1e-5)
    assert apart.gradient_norm == pytest.approx(together.gradient_norm, rel=1e-4) != 0


def test_a_stop_that_cannot_be_saved_is_no_stop_that_was_saved(trainer, samples, monkeypatch):
    calls = []

    def should_stop():
        calls.append(None)
        return len(calls) > 2

    run = trainer(samples(True), should_stop)
    with pytest.raises(Stopped):
        run.run(0, lambda report: None, dict)

    calls.clear()

    def full_disk(*_, **__):
        raise store.SaveError("No space left on device")

    monkeypatch.setattr(store, "save_step", full_disk)
    with pytest.raises(store.SaveError, match="stopped after 2 steps, which could not be saved"):
        run.run(0, lambda report: None, dict)


@pytest.mark.parametrize(
    ("error", "code"),
    [(store.SaveError("full"), 138), (OSError("gone"), 138), (UserError("wrong"), 2), (Stopped("so"), 143)],
)
def test_how_a_stage_ended_is_its_exit_code(monkeypatch, error, code):
    def fail(options, stop):
        raise error

    monkeypatch.setattr(stage_process, "train", fail)

    assert stage_process.main(["stage1"]) == code
