"""Laws of the import: published layouts become one model, and what does not fit is named by key and file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import published_layout
from model.checkpoint import load_model
from model.config import preset as preset_named
from model.manifest import sha256_file, verify, write_manifest
from tests.training.backbones.published_sources import choices, report_of, weights_of
from training.backbones.import_plan import ImportSources
from training.backbones.import_weights import import_weights, verify_import
from training.registry.lineage import read_lineage


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
    of_second = load_model(second.folder)[0].state_dict()
    for name, tensor in load_model(at_once.folder)[0].state_dict().items():
        assert torch.equal(of_second[name], tensor), name
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


def test_layouts_of_random_checkpoints_are_those_of_the_published_code(preset):
    config = preset_named(preset)
    layouts = {
        "vargpt_v1": published_layout.released_vargpt(config),
        "var": published_layout.var(config, len(weights_of("var")["class_emb.weight"]) - 1),
        "tokenizer": published_layout.image_tokenizer(config.image_tokenizer_config),
    }
    for name, layout in layouts.items():
        assert layout == {key: tuple(tensor.shape) for key, tensor in weights_of(name).items()}, name
