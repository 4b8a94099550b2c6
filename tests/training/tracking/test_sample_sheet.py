"""Laws of the sheet of samples: it is drawn from whatever types an engine keeps weights in."""

import pytest
import torch

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from training.stages.stage_table import STAGES, freeze_for
from training.tracking.sample_sheet import sample_sheet


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_samples_are_drawn_where_what_learns_is_in_float32_beside_frozen_bfloat16(stage):
    torch.manual_seed(0)
    config = preset("tiny")
    model = VargptForConditionalGeneration(config).to(torch.bfloat16)
    model.visual_decoder.initialize()
    # As checkpoints have it, whatever the type of the rest.
    model.image_tokenizer.float()
    config.null_prompt = [config.text_config.bos_token_id]
    processor = VargptProcessor.for_config(config, build_text_tokenizer(["draw a red one"], config))
    # As data parallel prepares a model.
    learning = freeze_for(model, STAGES[stage])
    for _, parameter in learning:
        parameter.data = parameter.data.float() + 1e-6
    before = [parameter.detach().clone() for _, parameter in learning]

    sheet = sample_sheet(model, processor, ["draw a red one"])

    assert sheet.size == (64, 64)
    assert all(torch.equal(now, then) for (_, now), then in zip(learning, before, strict=True))
