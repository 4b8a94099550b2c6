"""Laws of the batch loader: every record as itself, none above the limit, no text that no loss depends on."""

import pytest
import torch
from PIL import Image

from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.volume import ROOT
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.params import load_params

CONFIG = preset("tiny")
WORDS = "Here it is and it shows a red square on nothing at all"


@pytest.fixture
def drawings(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    picture = ImageRef(tmp_path / "red.png")

    def drawing(number, reply):
        messages = (Message("user", "Draw"), Message("assistant", reply))
        return Sample(str(number), messages, (picture,) * reply.count("<image_gen>"), "drawing", {})

    replies = [f"{WORDS} <image_gen> {WORDS}", f"<image_gen> {WORDS} <image_gen>"]
    return [drawing(number, reply) for number, reply in enumerate(replies * 4)]


def loader_of(samples, bad_records=None, bad_record_share=1.0, **changes):
    params = load_params(ROOT / "params.yaml", "smoke").stage3
    params = params.model_copy(update={"batch": 8, "micro_batch": 8, "drop_prompt": 0.0, **changes})
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer([f"Draw {WORDS}"], CONFIG))
    bad_records = bad_records or BadRecordLog()
    # As the reader of these samples would.
    bad_records.add_good(samples[0].source, len(samples))
    return BatchLoader(
        Mixture([(samples, 1.0)], 0),
        processor,
        CONFIG.image_tokenizer_config,
        params,
        seed=0,
        bad_records=bad_records,
        bad_record_share=bad_record_share,
    )


def single_batch(samples, text_weight):
    [batch] = loader_of(samples, text_weight=text_weight).micro_batches(0)
    return batch


def text_sample(identity, words):
    messages = (Message("user", "Draw"), Message("assistant", words))
    return Sample(identity, messages, (), "text", {})


def sample_lengths(loader, steps, world_size=1):
    return [
        int(row.sum())
        for step in range(steps)
        for rank in range(world_size)
        for batch in loader.micro_batches(step, rank, world_size)
        for row in batch["attention_mask"]
    ]


def test_two_records_with_one_id_give_two_different_samples():
    samples = [text_sample("same", "Here"), text_sample("same", f"{WORDS} {WORDS}")]

    assert len(set(sample_lengths(loader_of(samples, text_weight=1.0), steps=2))) == 2


def test_a_sample_above_the_limit_is_left_out_counted_and_named_on_any_rank():
    samples = [text_sample(f"id-{n}", WORDS if n == 3 else "Here") for n in range(8)]
    short = max(sample_lengths(loader_of([text_sample("id", "Here")], text_weight=1.0), steps=1))

    for world_size in (1, 2):
        log = BadRecordLog()
        loader = loader_of(samples, log, bad_record_share=0.2, text_weight=1.0, max_tokens=short)

        assert set(sample_lengths(loader, steps=3, world_size=world_size)) == {short}
        [record] = log.records
        assert (record.dataset, record.index) == ("text", 3)
        assert f"id-3 has {short + 12} tokens, max_tokens is {short}" in record.reason
        assert log.bad_shares() == {"text": 1 / 8}


def test_too_many_long_samples_stop_the_run():
    samples = [text_sample(f"id-{n}", WORDS if n < 4 else "Here") for n in range(8)]
    short = max(sample_lengths(loader_of([text_sample("id", "Here")], text_weight=1.0), steps=1))
    loader = loader_of(samples, bad_record_share=0.2, text_weight=1.0, max_tokens=short)

    with pytest.raises(UserError, match=r"text: 2 of 8 records are bad.*allowed: a share of 0\.2"):
        sample_lengths(loader, steps=3)
    with pytest.raises(UserError, match="no sample of text has at most 3 tokens"):
        sample_lengths(loader_of(samples, text_weight=1.0, max_tokens=3), steps=1)


def test_the_records_of_a_step_are_named_by_dataset_index_and_id(drawings):
    names = loader_of(drawings).record_names(0)

    assert sorted(names) == [f"drawing/{n} ({n})" for n in range(8)]


def test_text_after_the_last_drawing_is_loaded_only_where_text_has_a_weight(drawings):
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG).eval()
    full, cut = single_batch(drawings, 1.0), single_batch(drawings, 0.0)

    assert cut["attention_mask"].sum() < full["attention_mask"].sum()
    with torch.no_grad():
        expected, sums = (model.loss_sums(**batch) for batch in (full, cut))
    torch.testing.assert_close(sums.image_by_scale, expected.image_by_scale)
    assert sums.num_text < expected.num_text


def test_a_conversation_without_drawings_is_never_cut():
    samples = [text_sample(str(n), WORDS) for n in range(8)]

    assert torch.equal(single_batch(samples, 0.0)["input_ids"], single_batch(samples, 1.0)["input_ids"])
