"""Laws of the evaluation of data that come without answers: losses of samples that no stage has seen."""

import json
import math

import pytest
import torch
from PIL import Image

from model.checkpoint import load_model, save_model
from model.errors import UserError
from model.manifest import manifest_sha256
from tests.training.volume import write_params, write_volume
from training.data.prepared_data import DataFolders
from training.evaluation.held_out import evaluate_held_out
from training.params import load_params
from training.registry.evaluation_subject import subject_of
from training.registry.gates import decide
from training.registry.lineage import read_lineage, write_lineage

MARGINS = {"text": {"loss": 0.02}, "image": {"loss": 0.02}}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Data and untrained backbones; a third of all samples is held out."""
    folder = tmp_path_factory.mktemp("volume")
    write_params(folder)
    write_volume(folder)
    return folder


def params_of(volume, held_out=0.3):
    params = load_params(volume / "params.yaml", "smoke")
    return params.model_copy(update={"data": params.data.model_copy(update={"held_out": held_out})})


def evaluated(volume, model, out, **options):
    folders = DataFolders(volume, volume / "outputs" / "index")
    return evaluate_held_out(
        model, params_of(volume, **options), folders, 4, metrics_file=out / "m.json", plots_dir=out / "plots"
    )


@pytest.fixture(scope="module")
def backbones(volume):
    return volume / "outputs" / "backbones" / "model"


def test_losses_of_an_untrained_model_are_those_of_guessing_and_pictures_are_shown(
    volume, backbones, tmp_path
):
    found = evaluated(volume, backbones, tmp_path)

    model, _ = load_model(backbones)
    assert found["text"]["loss"] == pytest.approx(math.log(model.config.text_config.vocab_size), rel=0.1)
    codes = model.config.image_tokenizer_config.codebook_size
    assert found["image"]["loss"] == pytest.approx(math.log(codes), rel=0.1)
    assert json.loads((tmp_path / "m.json").read_text()) == found
    subject = subject_of(found)
    assert (subject.weights_sha256, subject.split) == (manifest_sha256(backbones), "test")
    assert subject.data_md5 == read_lineage(backbones).data_md5
    for name in ("drawings", "reconstructions"):
        assert Image.open(tmp_path / "plots" / f"{name}.png").width > 100


def test_weights_in_bfloat16_are_measured_beside_an_image_tokenizer_in_float32(volume, backbones, tmp_path):
    model, processor = load_model(backbones)
    exact = evaluated(volume, backbones, tmp_path)
    tokenizer = model.image_tokenizer
    model.to(torch.bfloat16)
    tokenizer.float()
    save_model(model, processor, tmp_path / "rounded")
    write_lineage(read_lineage(backbones), tmp_path / "rounded")

    rounded = evaluated(volume, tmp_path / "rounded", tmp_path)

    assert rounded["text"]["loss"] == pytest.approx(exact["text"]["loss"], abs=0.02)
    assert rounded["image"]["loss"] == pytest.approx(exact["image"]["loss"], abs=0.02)


def test_without_held_out_samples_there_is_nothing_to_measure(volume, backbones, tmp_path):
    with pytest.raises(UserError, match=r"data\.held_out is 0"):
        evaluated(volume, backbones, tmp_path, held_out=0.0)


def test_a_lower_loss_opens_the_gates_and_a_higher_one_does_not():
    figures = {"text": {"loss": 2.0}, "image": {"loss": 4.0}}

    assert decide(figures, [], MARGINS, {}).is_yes
    assert decide({"text": {"loss": 2.01}, "image": {"loss": 3.0}}, [figures], MARGINS, {}).is_yes
    [closed] = decide({"text": {"loss": 1.0}, "image": {"loss": 4.03}}, [figures], MARGINS, {}).failed
    assert closed.name == "image.loss"
