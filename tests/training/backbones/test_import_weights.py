"""Laws of the import: published layouts become one model, and what does not fit is named by key and file."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench import published_layout
from model.checkpoint import load_model
from model.config import PRESETS
from model.config import preset as preset_named
from model.manifest import manifest_sha256, sha256_file, verify, write_manifest
from training.backbones.import_plan import ImportSources
from training.backbones.import_weights import ImportChoices, import_weights, verify_import
from training.registry.lineage import read_lineage

GOLDEN = Path(__file__).parents[2] / "golden"
LLAVA_PARTS = ("vision_tower.", "language_model.", "multi_modal_projector.")


def weights_of(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}


def image_tokenizer_config(meta, weights):
    levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
    return {
        "scales": meta["scales"],
        "codebook_size": meta["codebook_size"],
        "latent_dim": meta["codebook_dim"],
        "channels": [weights[f"encoder.down.{level}.block.0.conv2.bias"].shape[0] for level in range(levels)],
        "num_refiners": sum(name.endswith(".bias") and "qresi_ls" in name for name in weights),
    }


@pytest.fixture
def preset(monkeypatch):
    meta = json.loads((GOLDEN / "meta.json").read_text())
    special = meta["special_tokens"]
    values = {
        "vision_config": meta["vision"],
        "text_config": meta["text"],
        "image_tokenizer_config": image_tokenizer_config(meta, weights_of("tokenizer")),
        "visual_decoder_config": {
            "depth": meta["decoder_depth"],
            "width": meta["decoder_width"],
            "num_heads": meta["decoder_heads"],
            "num_starts": weights_of("vargpt_v1")["vargpt_gen.class_emb.weight"].shape[0],
        },
        "image_token_id": meta["image_token_id"],
        "image_start_token_id": special["image_gen_start_token_id"],
        "image_end_token_id": special["image_gen_end_token_id"],
        "image_pad_token_id": special["image_gen_pad_token_id"],
    }
    monkeypatch.setitem(PRESETS, "golden", values)
    return "golden"


def write_text_tokenizer(folder, size=300):
    words = ["<s>", "</s>", "<pad>", "<unk>", "USER", "ASSISTANT", ":"]
    words += [f"word{number}" for number in range(size - len(words))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def llava(tmp_path):
    """LLaVA as transformers lays it out: two shards and a text tokenizer."""
    folder = tmp_path / "llava"
    folder.mkdir()
    weights = {n: t for n, t in weights_of("vargpt_v1").items() if n.startswith(LLAVA_PARTS)}
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({n: weights[n] for n in part}, folder / f"model-0000{number}-of-00002.safetensors")
    write_text_tokenizer(folder)
    return folder


@pytest.fixture
def sources(llava, tmp_path):
    """LLaVA, and decoder and image tokenizer as `.pth` files."""
    var, tokenizer = tmp_path / "var_d30.pth", tmp_path / "vae_ch160v4096z32.pth"
    torch.save(weights_of("var"), var)
    torch.save(weights_of("tokenizer"), tokenizer)
    return ImportSources(llava=llava, var=var, tokenizer=tokenizer)


@pytest.fixture
def released(tmp_path):
    """A released VARGPT, with its text tokenizer."""
    folder = tmp_path / "released"
    folder.mkdir()
    save_file(weights_of("vargpt_v1"), folder / "model.safetensors")
    write_text_tokenizer(folder)
    return folder


def choices(preset, dtype="float32", **others):
    return ImportChoices(preset=preset, dtype=dtype, **others)


def report_of(folder):
    return json.loads((folder / "import_report.json").read_text())


def keys_in(*files):
    """Keys of published files, by the names that the report gives to files."""
    found = set()
    for file in files:
        weights = torch.load(file) if file.suffix == ".pth" else load_file(file)
        inside = f"{file.parent.name}/{file.name}" if file.suffix == ".safetensors" else file.name
        found |= {(inside, key) for key in weights}
    return found


def test_three_published_sources_become_one_model(sources, preset, tmp_path):
    out = import_weights(sources, tmp_path / "out", choices(preset)).folder

    verify(out)
    sources = read_lineage(out).sources_sha256
    assert sources == {name: sha256_file(tmp_path / name) for name in sources}
    assert {"llava/model-00001-of-00002.safetensors", "llava/tokenizer.json", "var_d30.pth"} <= sources.keys()
    model, processor = load_model(out)
    var, tokenizer, whole = weights_of("var"), weights_of("tokenizer"), weights_of("vargpt_v1")
    own = model.state_dict()
    expected = {
        "visual_decoder.blocks.1.attention.qkv.weight": var["blocks.1.attn.mat_qkv.weight"],
        "visual_decoder.head.bias": var["head.bias"],
        "image_tokenizer.quantizer.codebook.weight": tokenizer["quantize.embedding.weight"],
        "language_model.lm_head.weight": whole["language_model.lm_head.weight"],
        "understanding_projector.second.bias": whole["multi_modal_projector.linear_2.bias"],
    }
    for name, tensor in expected.items():
        assert torch.equal(own[name], tensor.float()), name
    assert processor.tokenizer.convert_tokens_to_ids("<|image_gen_pad|>") == model.config.image_pad_token_id
    assert model.config.null_prompt == processor.null_prompt()


def test_the_start_embedding_is_made_of_the_classes_of_the_decoder(sources, preset, tmp_path):
    out = import_weights(sources, tmp_path / "out", choices(preset)).folder

    decoder = load_model(out)[0].visual_decoder
    classes = weights_of("var")["class_emb.weight"].float()
    rows = decoder.start_embedding.weight
    assert torch.equal(rows[decoder.config.null_start], classes[-1])
    torch.testing.assert_close(rows[decoder.config.image_start], classes[:-1].mean(0), atol=1e-3, rtol=0)


def test_the_same_sources_give_the_same_bits_random_projectors_included(sources, preset, tmp_path):
    first, second = (
        import_weights(sources, tmp_path / name, choices(preset)) for name in ("first", "second")
    )

    assert first.weights_sha256 == second.weights_sha256
    assert load_model(first.folder)[0].generation_input_projector.first.weight.std() > 0
    other = import_weights(sources, tmp_path / "other", choices(preset, seed=1))
    assert other.weights_sha256 != first.weights_sha256


def test_a_released_vargpt_needs_nothing_else(released, preset, tmp_path):
    model, _ = load_model(
        import_weights(ImportSources(vargpt=released), tmp_path / "out", choices(preset)).folder
    )

    projector = weights_of("vargpt_v1")["image_gen_projector.mlp.0.weight"].float()
    assert torch.equal(model.generation_input_projector.first.weight, projector)
    with pytest.raises(ValueError, match="is a whole VARGPT: give nothing else"):
        ImportSources(vargpt=released, var=tmp_path / "var.pth")
    with pytest.raises(ValueError, match="is a whole VARGPT: give it as vargpt"):
        import_weights(ImportSources(llava=released), tmp_path / "again", choices(preset))


def test_llava_is_read_under_its_newer_key_names_too(llava, sources, preset, tmp_path):
    for path in llava.glob("*.safetensors"):
        renamed = {
            name.replace("language_model.lm_head.", "lm_head.")
            .replace("language_model.model.", "model.language_model.")
            .replace("vision_tower.", "model.vision_tower.")
            .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
            for name, tensor in load_file(path).items()
        }
        save_file(renamed, path)

    model, _ = load_model(import_weights(sources, tmp_path / "out", choices(preset)).folder)

    head = weights_of("vargpt_v1")["language_model.lm_head.weight"].float()
    assert torch.equal(model.language_model.lm_head.weight, head)


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


def test_every_tensor_of_every_source_is_used_or_left_out_with_a_reason(sources, released, preset, tmp_path):
    for given, files in (
        (sources, (*sources.llava.glob("*.safetensors"), sources.var, sources.tokenizer)),
        (ImportSources(vargpt=released), (released / "model.safetensors",)),
    ):
        out = import_weights(given, tmp_path / f"of {len(files)}", choices(preset)).folder

        report = report_of(out)
        used = {(tensor["file"], tensor["key"]) for tensor in report["used"]}
        left_out = {(tensor["file"], tensor["key"]) for tensor in report["left_out"]}
        assert used | left_out == keys_in(*files)
        assert not used & left_out
        assert all(tensor["reason"] for tensor in report["left_out"])
        became = [tensor["becomes"] for tensor in report["used"]] + report["new"]
        assert sorted(became) == sorted(load_model(out)[0].state_dict())


def test_only_the_image_tokenizer_stays_in_float32_and_rounding_is_counted(sources, preset, tmp_path):
    weights = {key: tensor.float() for key, tensor in weights_of("var").items()}
    weights["head.bias"] = weights["head.bias"] + 1e-6
    torch.save(weights, sources.var)
    torch.save({key: t.float() for key, t in weights_of("tokenizer").items()}, sources.tokenizer)

    imported = import_weights(sources, tmp_path / "out", choices(preset, "bfloat16"))

    parts = imported.report.parts
    assert parts["image_tokenizer"].types == ("float32",)
    assert parts["visual_decoder"].types == parts["language_model"].types == ("bfloat16",)
    rounded = {tensor.key for tensor in imported.report.used if tensor.rounded}
    assert "head.bias" in rounded
    assert parts["image_tokenizer"].rounded == 0
    model, _ = load_model(imported.folder)
    assert model.image_tokenizer.to_latent.weight.dtype == torch.float32
    assert model.language_model.lm_head.weight.dtype == torch.bfloat16


def test_single_parts_become_a_model_one_import_after_the_other(sources, preset, tmp_path):
    first = import_weights(ImportSources(llava=sources.llava), tmp_path / "first", choices(preset))
    assert set(first.report.missing_parts) >= {"visual_decoder", "image_tokenizer"}
    with pytest.raises(ValueError, match=r"no whole model, it lacks .*visual_decoder"):
        load_model(first.folder)

    rest = ImportSources(base=first.folder, var=sources.var, tokenizer=sources.tokenizer)
    second = import_weights(rest, tmp_path / "second", choices(preset))

    at_once = import_weights(sources, tmp_path / "at once", choices(preset))
    for name, tensor in load_model(at_once.folder)[0].state_dict().items():
        assert torch.equal(load_model(second.folder)[0].state_dict()[name], tensor), name
    verify_import(rest, second.folder)


def test_verify_finds_a_weight_that_is_not_its_source(sources, preset, tmp_path):
    out = import_weights(sources, tmp_path / "out", choices(preset), is_verified=True).folder
    verify_import(sources, out)

    weights = load_file(out / "model.safetensors")
    weights["visual_decoder.head.bias"][3] += 1
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the manifest says"):
        verify_import(sources, out)
    write_manifest(out)
    with pytest.raises(
        ValueError, match=r"visual_decoder\.head\.bias .* is not head\.bias in .*var_d30\.pth"
    ):
        verify_import(sources, out)


def test_an_import_is_what_transformers_would_write(sources, preset, tmp_path):
    out = import_weights(sources, tmp_path / "out", choices(preset)).folder

    model, _ = load_model(out)
    model.save_pretrained(tmp_path / "again")
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(out / "model.safetensors")


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


def test_layouts_of_random_checkpoints_are_those_of_the_published_code(preset):
    config = preset_named(preset)
    layouts = {
        "vargpt_v1": published_layout.released_vargpt(config),
        "var": published_layout.var(config, len(weights_of("var")["class_emb.weight"]) - 1),
        "tokenizer": published_layout.image_tokenizer(config.image_tokenizer_config),
    }
    for name, layout in layouts.items():
        assert layout == {key: tuple(tensor.shape) for key, tensor in weights_of(name).items()}, name
