"""Laws of what a step learns from: each record as itself, none too long, nothing that teaches nothing."""

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
from training.data.batches import Batches
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


def batches(samples, bad_records=None, bad_record_share=1.0, **changes):
    params = load_params(ROOT / "params.yaml", "smoke").stage3
    params = params.model_copy(update={"batch": 8, "micro_batch": 8, "drop_prompt": 0.0, **changes})
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer([f"Draw {WORDS}"], CONFIG))
    return Batches(
        Mixture([(samples, 1.0)], 0),
        processor,
        CONFIG.image_tokenizer_config,
        params,
        seed=0,
        bad_records=bad_records or BadRecordLog(),
        bad_record_share=bad_record_share,
    )


def batch(samples, text_weight):
    [part] = batches(samples, text_weight=text_weight).at(0)
    return part


def spoken(identity, words):
    messages = (Message("user", "Draw"), Message("assistant", words))
    return Sample(identity, messages, (), "text", {})


def lengths(made, steps, world=1):
    return [
        int(row.sum())
        for step in range(steps)
        for rank in range(world)
        for part in made.at(step, rank, world)
        for row in part["attention_mask"]
    ]


def test_records_that_share_an_id_are_learned_each_as_itself():
    samples = [spoken("same", "Here"), spoken("same", f"{WORDS} {WORDS}")]

    assert len(set(lengths(batches(samples, text_weight=1.0), steps=2))) == 2


def test_a_sample_above_the_limit_is_left_out_counted_and_named_whichever_process_meets_it():
    samples = [spoken(f"id-{n}", WORDS if n == 3 else "Here") for n in range(8)]
    short = max(lengths(batches([spoken("id", "Here")], text_weight=1.0), steps=1))

    for world in (1, 2):
        log = BadRecordLog()
        log.good("text", 8)
        made = batches(samples, log, bad_record_share=0.2, text_weight=1.0, max_tokens=short)

        assert set(lengths(made, steps=3, world=world)) == {short}
        [record] = log.records
        assert (record.dataset, record.index) == ("text", 3)
        assert f"id-3 has {short + 12} tokens, max_tokens is {short}" in record.reason
        assert log.shares() == {"text": 1 / 8}


def test_too_many_long_samples_stop_the_run():
    samples = [spoken(f"id-{n}", WORDS if n < 4 else "Here") for n in range(8)]
    log = BadRecordLog()
    log.good("text", 8)
    short = max(lengths(batches([spoken("id", "Here")], text_weight=1.0), steps=1))
    made = batches(samples, log, bad_record_share=0.2, text_weight=1.0, max_tokens=short)

    with pytest.raises(UserError, match=r"text: 2 of 8 records are bad.*allowed: a share of 0\.2"):
        lengths(made, steps=3)
    with pytest.raises(UserError, match="no sample of text has at most 3 tokens"):
        lengths(batches(samples, text_weight=1.0, max_tokens=3), steps=1)


def test_the_records_of_a_step_have_names(drawings):
    names = batches(drawings).names_at(0)

    assert sorted(names) == [f"drawing/{n} ({n})" for n in range(8)]


def test_words_that_no_drawing_follows_are_read_only_where_words_weigh(drawings):
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG).eval()
    read, left_out = batch(drawings, 1.0), batch(drawings, 0.0)

    assert left_out["attention_mask"].sum() < read["attention_mask"].sum()
    with torch.no_grad():
        expected, sums = (model.loss_sums(**part) for part in (read, left_out))
    torch.testing.assert_close(sums.image_by_scale, expected.image_by_scale)
    assert sums.num_text < expected.num_text


def test_a_conversation_without_drawings_is_read_whole(drawings):
    spoken = [
        Sample(str(n), (Message("user", "Draw"), Message("assistant", WORDS)), (), "text", {})
        for n in range(8)
    ]

    assert torch.equal(batch(spoken, 0.0)["input_ids"], batch(spoken, 1.0)["input_ids"])
