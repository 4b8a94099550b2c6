"""The published weights that an import reads."""

import json

import pytest
import torch
from safetensors.torch import save_file

from model.config import PRESETS
from tests.training.backbones.published_sources import (
    GOLDEN,
    LLAVA_PARTS,
    image_tokenizer_config,
    weights_of,
    write_text_tokenizer,
)
from training.backbones.import_plan import ImportSources


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
