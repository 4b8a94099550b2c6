"""Laws of saved models: what is loaded is what was saved, or the folder is refused; nothing is made up."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_model, save_model
from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer

NAME = "understanding_projector.first.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    config = preset("tiny")
    processor = VargptProcessor.for_config(config, build_text_tokenizer(["Hi"], config))
    save_model(VargptForConditionalGeneration(config), processor, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change_weights(folder, **changes):
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def write_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: change_weights(f, **{NAME: None}), f"missing weights: {NAME}"),
        (lambda f: change_weights(f, extra=torch.zeros(2)), "unexpected weights: extra"),
        (lambda f: change_weights(f, **{NAME: torch.zeros(2)}), f"mismatched weights: .*{NAME}"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "config.json").unlink(), "is not a model: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not a configuration"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not a configuration"),
        (lambda f: write_config(f, model_type="llama"), "is of a model of type 'llama', not 'vargpt'"),
    ],
)
def test_a_folder_that_is_not_exactly_the_saved_model_is_refused(folder, damage, said):
    damage(folder)

    with pytest.raises(UserError, match=said):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_disk_that_fails_is_no_mistake_of_the_folder(folder, name):
    (folder / name).unlink()
    # A file that can be opened, but neither read from its beginning nor mapped.
    (folder / name).symlink_to("/proc/self/mem")

    with pytest.raises(OSError, match=r"Input/output error|No such device"):
        load_model(folder)


def test_weights_are_loaded_in_the_type_that_is_asked_for(folder):
    assert load_model(folder)[0].dtype == torch.float32
    assert load_model(folder, torch.bfloat16)[0].dtype == torch.bfloat16


def test_weights_are_mapped_from_the_disk_not_copied_into_memory(tmp_path):
    config = preset("tiny")
    processor = VargptProcessor.for_config(config, build_text_tokenizer(["Hi"], config))
    model = VargptForConditionalGeneration(config).to(torch.bfloat16)
    model.image_tokenizer.float()
    save_model(model, processor, tmp_path)

    loaded, _ = load_model(tmp_path)

    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line for line in maps if line.endswith(str(tmp_path / "model.safetensors"))]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    copied = [
        name
        for name, tensor in loaded.state_dict().items()
        if not any(begin <= tensor.data_ptr() < end for begin, end in ranges)
    ]
    assert not copied
    assert loaded.dtype is torch.bfloat16


def test_the_image_tokenizer_is_loaded_in_float32_whatever_type_is_asked_for(saved):
    loaded, _ = load_model(saved, torch.bfloat16)

    assert loaded.image_tokenizer.to_latent.weight.dtype is torch.float32
    assert loaded.language_model.lm_head.weight.dtype is torch.bfloat16
    codes = loaded.image_tokenizer.encode(
        torch.zeros(1, 3, *[loaded.config.image_size] * 2, dtype=torch.bfloat16)
    )
    assert [len(code[0]) for code in codes] == [side**2 for side in loaded.config.scales]
