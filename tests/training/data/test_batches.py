"""Laws of what a step learns from: nothing is read that teaches nothing."""

import pytest
import torch
from PIL import Image

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.volume import ROOT
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


def batch(samples, text_weight):
    params = load_params(ROOT / "params.yaml", "smoke").stage3
    changes = {"text_weight": text_weight, "batch": 8, "micro_batch": 8, "drop_prompt": 0.0}
    params = params.model_copy(update=changes)
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer([f"Draw {WORDS}"], CONFIG))
    [part] = Batches(
        Mixture([(samples, 1.0)], 0), processor, CONFIG.image_tokenizer_config, params, seed=0
    ).at(0)
    return part


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
