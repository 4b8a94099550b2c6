"""Laws of loading ahead: other processes make the same batches, at any step; their faults are told here."""

import signal

import psutil
import pytest
import torch

from model.errors import UserError
from tests.training.data.parts import CONFIG, dataset_params, folders_of, processor, write_conversations
from tests.training.volume import ROOT
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.prepared_data import index_datasets, open_mixture
from training.params import load_params

KINDS = ["text", "drawing", "question", "interleaved"] * 3


def loader_of(root, workers, bad_record_share=1.0, **changes):
    path = write_conversations(root / "set", KINDS)
    index_datasets([dataset_params(str(path))], folders_of(root), processor(), 1, 1.0)
    mixture = open_mixture([dataset_params(str(path))], folders_of(root), 0.0, 0, log := BadRecordLog())
    changes = {
        "batch": 4,
        "micro_batch": 2,
        "steps": 8,
        "loader_workers": workers,
        "text_weight": 1.0,
        **changes,
    }
    params = load_params(ROOT / "params.yaml", "smoke").stage3.model_copy(update=changes)
    return BatchLoader(mixture, processor(), CONFIG.image_tokenizer_config, params, 0, log, bad_record_share)


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_steps_made_ahead_are_those_made_here_from_any_step_on(tmp_path):
    ahead, here = loader_of(tmp_path, workers=2), loader_of(tmp_path, workers=0)

    for step in (0, 1, 2, 5, 6, 7):
        assert_same(ahead.micro_batches(step, 1, 2), here.micro_batches(step, 1, 2))


def test_samples_that_workers_find_too_long_are_counted_here_once(tmp_path):
    longest = 80
    loaders = [loader_of(tmp_path, workers, max_tokens=longest) for workers in (1, 0)]

    for step in range(6):
        assert_same(*(loader.micro_batches(step) for loader in loaders))

    logs = [loader.bad_records for loader in loaders]
    assert sorted(map(str, logs[0].records)) == sorted(map(str, logs[1].records)) != []
    with pytest.raises(UserError, match=r"records are bad.*allowed: a share of 0.1"):
        loader = loader_of(tmp_path, 1, bad_record_share=0.1, max_tokens=longest)
        for step in range(6):
            loader.micro_batches(step)


def test_ctrl_c_in_a_terminal_takes_no_batch_from_a_training_that_is_about_to_save(tmp_path):
    ahead, here = loader_of(tmp_path, workers=1), loader_of(tmp_path, workers=0)
    for step in range(2):
        ahead.micro_batches(step)
    workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert workers

    for worker in workers:
        worker.send_signal(signal.SIGINT)

    for step in range(2, 8):
        assert_same(ahead.micro_batches(step), here.micro_batches(step))


def test_a_fault_in_a_worker_is_one_sentence_here(tmp_path):
    loader = loader_of(tmp_path, workers=1)
    loader.micro_batches(0)
    for picture in (tmp_path / "set").glob("*.png"):
        picture.unlink()

    with pytest.raises(UserError, match=r"^missing image [^\n]*$"):
        for step in range(1, 8):
            loader.micro_batches(step)
