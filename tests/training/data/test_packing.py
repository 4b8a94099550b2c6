"""Laws of packed batches: full rows, every sample once on whatever rank, and the losses of padded batches."""

import functools
import itertools
import operator
import random

import pytest
import torch

from model.errors import UserError
from model.losses import IGNORED, token_counts
from model.modeling import VargptForConditionalGeneration
from tests.training.data.parts import CONFIG, dataset_params, folders_of, processor, write_conversations
from tests.training.volume import ROOT
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.packing import pack, share_of_rank
from training.data.prepared_data import index_datasets, open_mixture
from training.params import load_params

KINDS = ["text", "question", "drawing", "interleaved", "drawing", "text", "question", "drawing"] * 2
MIXTURE_KEYS = {"batch": 8, "micro_batch": 3, "text_weight": 1.0, "drop_prompt": 0.5, "steps": 6}


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_sample_once_within_the_size(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 100) for _ in range(rng.randint(0, 200))]

    rows = pack(lengths, 100)

    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    sums = [sum(lengths[position] for position in row) for row in rows]
    assert all(0 < total <= 100 for total in sums) and sums == sorted(sums, reverse=True)
    assert len(rows) <= 1 + 1.25 * sum(lengths) / 100


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_rows_with_as_many_each(world_size):
    rows = [[number] for number in range(5)]

    shares = [share_of_rank(rows, rank, world_size) for rank in range(world_size)]

    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for row in share if row) == rows


@pytest.fixture
def data(tmp_path):
    return write_conversations(tmp_path / "set", KINDS)


def loader_of(path, is_indexed=True, held_out=0.0, **changes):
    folders = folders_of(path.parents[1])
    if is_indexed:
        index_datasets([dataset_params(str(path))], folders, processor(), 1, 1.0)
    mixture = open_mixture([dataset_params(str(path))], folders, held_out, 0, log := BadRecordLog())
    params = load_params(ROOT / "params.yaml", "smoke").stage3.model_copy(update=MIXTURE_KEYS | changes)
    return BatchLoader(mixture, processor(), CONFIG.image_tokenizer_config, params, 0, log, 1.0)


def rows_of(batches):
    """The samples of batches, each as its ids and labels, in a fixed order, but for empty ones."""
    found = []
    for batch in batches:
        if "position_ids" in batch:
            starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
            cuts = [*starts, batch["input_ids"].shape[1]]
            spans = itertools.pairwise(cuts)
            found += [batch["input_ids"][0, first:end].tolist() for first, end in spans]
        else:
            found += [
                row[mask == 1].tolist()
                for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
    return sorted(row for row in found if len(row) > 1)


@pytest.mark.parametrize("text_weight", [0.0, 1.0])
@pytest.mark.parametrize("is_indexed", [True, False])
def test_packed_and_padded_steps_have_the_same_samples_on_any_number_of_ranks(data, text_weight, is_indexed):
    padded = loader_of(data, is_indexed, text_weight=text_weight)
    packed = loader_of(data, is_indexed, text_weight=text_weight, pack_tokens=512)

    for step in range(3):
        expected = rows_of(padded.micro_batches(step))
        assert len(expected) == 8
        for world_size in (1, 2, 3, 8):
            by_rank = [packed.micro_batches(step, rank, world_size) for rank in range(world_size)]
            assert len({len(batches) for batches in by_rank}) == 1
            assert rows_of(functools.reduce(operator.iadd, by_rank, [])) == expected


def test_a_packed_step_has_the_losses_of_a_padded_one(data):
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG).eval()

    def losses(loader):
        batches = loader.micro_batches(1)
        with torch.no_grad():
            sums = [model.loss_sums(**batch) for batch in batches]
        counts = sum(token_counts(batch, CONFIG.scales) for batch in batches)
        return torch.stack([torch.cat([s.text[None], s.image_by_scale]) for s in sums]).sum(0) / counts

    packed, padded = losses(loader_of(data, pack_tokens=400, max_tokens=400)), losses(loader_of(data))

    assert float(packed[1:].min()) > 0
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


def test_rows_are_as_long_as_the_index_says_and_no_longer_than_asked(data):
    loader = loader_of(data, pack_tokens=150, max_tokens=150)

    lengths = [batch["input_ids"].shape[1] for step in range(4) for batch in loader.micro_batches(step)]

    assert max(lengths) <= 150
    assert sum(lengths) / len(lengths) > 75
    first = loader.micro_batches(0)[0]
    assert first["labels"][0, 0] == IGNORED


def test_samples_that_fit_into_no_row_are_refused_before_training(data):
    with pytest.raises(UserError, match="pack_tokens 100 is less than max_tokens 512"):
        loader_of(data, pack_tokens=100, max_tokens=512)


def test_padded_micro_batches_are_as_many_on_every_rank(data):
    loader = loader_of(data, batch=7, micro_batch=2, code_corruption=0.3)

    by_rank = [loader.micro_batches(0, rank, 3) for rank in range(3)]

    assert [len(batches) for batches in by_rank] == [2, 2, 2]
    assert len(rows_of(functools.reduce(operator.iadd, by_rank, []))) == 7
    assert all(len(b["replacements"]) == len(b["generation_pixel_values"]) for bs in by_rank for b in bs)


def test_held_out_batches_are_never_in_training_and_shared_by_ranks(data):
    loader = loader_of(data, held_out=0.25, pack_tokens=512, drop_prompt=0.0)

    held = rows_of(loader.held_out(4))
    trained = [row for step in range(4) for row in rows_of(loader.micro_batches(step))]

    assert len(held) == 4
    assert not any(row in trained for row in held)
    assert rows_of(loader.held_out(4, 0, 2) + loader.held_out(4, 1, 2)) == held
    assert loader_of(data).held_out(4) == []


def test_lengths_of_another_text_tokenizer_are_refused(data, monkeypatch):
    loader_of(data)
    monkeypatch.setattr(processor(), "system_prompt", "Other.")

    with pytest.raises(UserError, match=r"another text tokenizer.*vargpt data prepare"):
        loader_of(data, is_indexed=False)
