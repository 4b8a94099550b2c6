"""Laws of what an import refuses: it names key, file or part, and leaves nothing behind."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import preset as preset_named
from model.manifest import manifest_sha256, verify
from model.text_tokenizer import published_text_tokenizer
from tests.training.backbones.published_sources import choices, write_text_tokenizer
from training.backbones.import_plan import ImportSources
from training.backbones.import_weights import import_weights


def replace_tensor(path, key, tensor):
    """Change one tensor of a `.pth` or safetensors file; None removes it."""
    read, write = (torch.load, torch.save) if path.suffix == ".pth" else (load_file, save_file)
    weights = read(path)
    weights.pop(key, None)
    write(weights | ({key: tensor} if tensor is not None else {}), path)


@pytest.mark.parametrize(
    ("file", "key", "tensor", "message"),
    [
        (
            "var_d30.pth",
            "head.bias",
            torch.zeros(7),
            r"^head\.bias in .*var_d30\.pth is \(7,\), expected \(64,\)",
        ),
        (
            "var_d30.pth",
            "blocks.0.attn.proj.weight",
            None,
            r"^\S*var_d30\.pth lacks 1 weights, .*attention\.out",
        ),
        (
            "var_d30.pth",
            "shared_ada.weight",
            torch.zeros(1),
            r"^shared_ada\.weight in .*var_d30\.pth has no place",
        ),
        (
            "vae_ch160v4096z32.pth",
            "decoder.up.0.block.0.conv1.bias",
            torch.zeros(3),
            r"^decoder\.up\.0\.block\.0\.conv1\.bias in .*vae_ch160v4096z32\.pth is \(3,\), expected",
        ),
        (
            "llava/model-00002-of-00002.safetensors",
            "multi_modal_projector.linear_1.weight",
            torch.zeros(2, 2),
            r"^multi_modal_projector\.linear_1\.weight in .*model-0000\d-of-00002\.safetensors is \(2, 2\)",
        ),
        (
            "llava/model-00001-of-00002.safetensors",
            "vargpt_extra.weight",
            torch.zeros(1),
            r"^vargpt_extra\.weight belongs to no part",
        ),
    ],
)
def test_a_weight_that_does_not_fit_is_named_by_key_and_file(
    llava, sources, preset, tmp_path, file, key, tensor, message
):
    if file.startswith("llava"):
        for path in llava.glob("*.safetensors"):
            replace_tensor(path, key, None)
    replace_tensor(tmp_path / file, key, tensor)

    with pytest.raises(ValueError, match=message):
        import_weights(sources, tmp_path / "out", choices(preset))

    assert not (tmp_path / "out").exists()


def test_files_that_are_no_weights_are_refused(sources, preset, tmp_path):
    sources.var.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"var_d30\.pth cannot be read"):
        import_weights(sources, tmp_path / "out", choices(preset))
    torch.save({"run": print}, sources.var)
    with pytest.raises(ValueError, match=r"var_d30\.pth cannot be read"):
        import_weights(sources, tmp_path / "out", choices(preset))


def test_what_cannot_become_a_model_is_refused(llava, sources, preset, tmp_path):
    with pytest.raises(ValueError, match="no published weights are named"):
        ImportSources()
    with pytest.raises(ValueError, match=r"no source has .*visual_decoder, image_tokenizer"):
        import_weights(ImportSources(llava=llava), tmp_path / "out", choices(preset), must_be_whole=True)
    with pytest.raises(ValueError, match="exists already"):
        import_weights(sources, llava, choices(preset))
    with pytest.raises(ValueError, match="dtype must be one of"):
        choices(preset, "float16")
    with pytest.raises(ValueError, match="'decoder' is no part of the model"):
        import_weights(sources, tmp_path / "out", choices(preset, float32_parts=frozenset({"decoder"})))
    write_text_tokenizer(llava, size=290)
    with pytest.raises(ValueError, match="numbers <image> 290, expected 300"):
        import_weights(sources, tmp_path / "out", choices(preset))


def test_an_import_that_fails_leaves_nothing_and_one_that_replaces_leaves_the_new(
    sources, preset, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    before = import_weights(sources, out, choices(preset)).weights_sha256
    with monkeypatch.context() as patch:
        patch.setattr("training.backbones.import_weights.write_manifest", Mock(side_effect=OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            import_weights(sources, out, choices(preset, seed=1), is_replaced=True)
    verify(out)
    assert manifest_sha256(out) == before

    after = import_weights(sources, out, choices(preset, seed=1), is_replaced=True).weights_sha256

    verify(out)
    assert manifest_sha256(out) == after != before
    assert {path.name for path in tmp_path.iterdir()} == {
        "llava",
        "var_d30.pth",
        "vae_ch160v4096z32.pth",
        "out",
    }


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(sources, preset, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match="has 1,000 bytes left, the weights take"):
        import_weights(sources, tmp_path / "out", choices(preset))


def test_a_folder_without_a_text_tokenizer_is_named_in_one_line(preset, tmp_path):
    config = preset_named(preset)

    with pytest.raises(ValueError, match=r"there is no folder \S*/none to read a text tokenizer from$"):
        published_text_tokenizer(tmp_path / "none", config)
    with pytest.raises(ValueError, match=r"holds no text tokenizer that can be read: [^\n]+$"):
        published_text_tokenizer(tmp_path, config)


def test_a_disk_that_fails_is_no_mistake_of_the_text_tokenizer(preset, tmp_path):
    write_text_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    # A file that can be opened, but not read from its beginning.
    (tmp_path / "tokenizer.json").symlink_to("/proc/self/mem")

    with pytest.raises(OSError, match="Input/output error"):
        published_text_tokenizer(tmp_path, preset_named(preset))
