"""Laws of the import: published layouts become one model, and what does not fit is named by key and file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.checkpoint import load_model
from model.config import PRESETS
from model.manifest import sha256_file, verify
from training.backbones.import_weights import import_weights
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
def published(tmp_path):
    """The decoder and the image tokenizer as `.pth` files."""
    paths = tmp_path / "var_d30.pth", tmp_path / "vae_ch160v4096z32.pth"
    for path, name in zip(paths, ("var", "tokenizer"), strict=True):
        torch.save(weights_of(name), path)
    return paths


def test_three_published_sources_become_one_model(llava, published, preset, tmp_path):
    out = import_weights(llava, *published, tmp_path / "out", preset, torch.float32)

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


def test_the_start_embedding_is_made_of_the_classes_of_the_decoder(llava, published, preset, tmp_path):
    out = import_weights(llava, *published, tmp_path / "out", preset, torch.float32)

    decoder = load_model(out)[0].visual_decoder
    classes = weights_of("var")["class_emb.weight"].float()
    rows = decoder.start_embedding.weight
    assert torch.equal(rows[decoder.config.null_start], classes[-1])
    torch.testing.assert_close(rows[decoder.config.image_start], classes[:-1].mean(0), atol=1e-3, rtol=0)


def test_generation_projectors_start_from_the_same_random_weights_every_time(
    llava, published, preset, tmp_path
):
    first, second = (
        load_model(import_weights(llava, *published, tmp_path / name, preset))[0].state_dict()
        for name in ("first", "second")
    )

    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert first["generation_input_projector.first.weight"].std() > 0


def test_a_released_vargpt_needs_nothing_else(preset, tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    save_file(weights_of("vargpt_v1"), folder / "model.safetensors")
    write_text_tokenizer(folder)

    model, _ = load_model(import_weights(folder, None, None, tmp_path / "out", preset, torch.float32))

    projector = weights_of("vargpt_v1")["image_gen_projector.mlp.0.weight"].float()
    assert torch.equal(model.generation_input_projector.first.weight, projector)
    with pytest.raises(ValueError, match="is a whole VARGPT: give neither"):
        import_weights(folder, tmp_path / "var.pth", None, tmp_path / "again", preset)


def test_llava_is_read_under_its_newer_key_names_too(llava, published, preset, tmp_path):
    for path in llava.glob("*.safetensors"):
        renamed = {
            name.replace("language_model.lm_head.", "lm_head.")
            .replace("language_model.model.", "model.language_model.")
            .replace("vision_tower.", "model.vision_tower.")
            .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
            for name, tensor in load_file(path).items()
        }
        save_file(renamed, path)

    model, _ = load_model(import_weights(llava, *published, tmp_path / "out", preset, torch.float32))

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
    llava, published, preset, tmp_path, file, key, tensor, message
):
    if file.startswith("llava"):
        for path in llava.glob("*.safetensors"):
            replace_tensor(path, key, None)
    replace_tensor(tmp_path / file, key, tensor)

    with pytest.raises(ValueError, match=message):
        import_weights(llava, *published, tmp_path / "out", preset)

    assert not (tmp_path / "out").exists()


def test_files_that_are_no_weights_are_refused(llava, published, preset, tmp_path):
    var, tokenizer = published
    var.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"var_d30\.pth cannot be read"):
        import_weights(llava, var, tokenizer, tmp_path / "out", preset)
    torch.save({"run": print}, var)
    with pytest.raises(ValueError, match=r"var_d30\.pth cannot be read"):
        import_weights(llava, var, tokenizer, tmp_path / "out", preset)


def test_a_folder_without_the_sources_is_named(llava, published, preset, tmp_path):
    with pytest.raises(ValueError, match="a decoder and an image tokenizer are needed"):
        import_weights(llava, None, None, tmp_path / "out", preset)
    with pytest.raises(ValueError, match="exists already"):
        import_weights(llava, *published, llava, preset)
    write_text_tokenizer(llava, size=290)
    with pytest.raises(ValueError, match="numbers <image> 290, expected 300"):
        import_weights(llava, *published, tmp_path / "out", preset)
