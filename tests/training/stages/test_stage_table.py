"""Laws of the stage table, of the learning-rate schedule and of the average of weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from model.config import preset
from model.modeling import VargptForConditionalGeneration
from training.optimization.schedule import learning_rate
from training.optimization.weight_average import WeightAverage
from training.stages.stage_table import STAGES, freeze_for, stage_named


@pytest.fixture(scope="module")
def model():
    return VargptForConditionalGeneration(preset("tiny"))


@pytest.mark.parametrize("name", STAGES)
def test_only_the_modules_of_a_stage_are_trainable(model, name):
    trainable = freeze_for(model, STAGES[name])

    names = [path for path, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == len(names) > 0
    assert all(path.startswith(STAGES[name].trains) for path in names)
    assert not model.vision_tower.training
    assert not model.image_tokenizer.training
    for path in STAGES[name].trains:
        assert model.get_submodule(path).training


def test_the_stages_follow_the_figure_of_the_paper():
    assert STAGES["stage1"].trains == (
        "generation_input_projector",
        "generation_output_projector",
        "visual_decoder.start_embedding",
    )
    assert STAGES["stage2"].trains == ("language_model", "understanding_projector")
    assert STAGES["stage3"].trains[-1] == "visual_decoder"
    with pytest.raises(ValueError, match=r"stage must be one of .* got 'stage4'"):
        stage_named("stage4")


def test_the_rate_warms_up_then_falls_to_zero():
    rates = [learning_rate(step, 1.0, 10, 100, end=0.0) for step in range(100)]

    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_the_rate_falls_to_the_share_of_its_peak_that_is_set():
    rates = [learning_rate(step, 2.0, 10, 100, end=0.25) for step in range(100)]

    assert max(rates) == rates[9] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.5, rel=0.01)


def test_the_average_replaces_the_weights_for_a_block_or_for_good():
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage([weight], decay=0.5)
    for step, value in enumerate((1.0, 1.0, 1.0), start=1):
        weight.data.fill_(value)
        average.update(step)

    with average.applied():
        averaged = weight.item()
    restored = weight.item()
    average.copy_to_parameters()

    assert 0.5 < averaged < 1
    assert restored == 1.0
    assert weight.item() == averaged


def test_every_stage_has_a_section_in_the_parameters():
    text = (Path(__file__).parents[3] / "params.yaml").read_text()

    for name in STAGES:
        assert f"\n{name}:\n" in text
