"""Parity with the published VAR and VARGPT code on golden vectors: every output within 1e-4, indices exactly.

`pytest tests -k golden --golden DIR` checks another folder of the same layout, with sizes from its meta.json.
Without `tests`, or an equals sign after `--golden`, pytest looks for its configuration beside DIR.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from model.config import ImageTokenizerConfig, VargptConfig, VisualDecoderConfig
from model.image_tokenizer import ImageTokenizer
from model.published import decoder_names, renamed, tokenizer_names, vargpt_names
from model.scales import scale_offsets
from model.vargpt import TargetImages, Vargpt
from model.visual_decoder import DecoderCache, VisualDecoder

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(request):
    return Path(request.config.getoption("--golden") or Path(__file__).parents[1] / "golden")


@pytest.fixture(scope="module")
def meta(folder):
    return json.loads((folder / "meta.json").read_text())


def arrays(path):
    tensors = load_file(path)
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    weights = {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}
    return weights, {name: t for name, t in tensors.items() if not name.startswith("weights.")}


def close(actual, expected):
    torch.testing.assert_close(actual.float(), expected.float(), atol=TOLERANCE, rtol=0)


def tokenizer_config(meta, weights):
    base = meta["tokenizer_base_channels"]
    levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
    widths = [weights[f"encoder.down.{level}.block.0.conv2.bias"].shape[0] for level in range(levels)]
    assert widths[0] == base
    return ImageTokenizerConfig(
        scales=meta["scales"],
        codebook_size=meta["codebook_size"],
        latent_dim=meta["codebook_dim"],
        channels=widths,
        num_refiners=sum(name.endswith(".bias") and "qresi_ls" in name for name in weights),
    )


def decoder_config(meta, num_starts):
    return VisualDecoderConfig(
        depth=meta["decoder_depth"],
        width=meta["decoder_width"],
        num_heads=meta["decoder_heads"],
        num_starts=num_starts,
    )


@pytest.fixture(scope="module")
def tokenizer_case(folder, meta):
    weights, values = arrays(folder / "tokenizer.safetensors")
    tokenizer = ImageTokenizer(tokenizer_config(meta, weights)).eval()
    tokenizer.load_state_dict(renamed(weights, tokenizer_names))
    return tokenizer, values


@pytest.fixture(scope="module")
def decoder_case(folder, meta, tokenizer_case):
    weights, values = arrays(folder / "var.safetensors")
    config = decoder_config(meta, weights["class_emb.weight"].shape[0])
    decoder = VisualDecoder(config, tokenizer_case[0].config).eval()
    decoder.load_state_dict(renamed(weights, decoder_names))
    return decoder, values


@pytest.fixture(scope="module")
def vargpt_case(folder, meta):
    weights, values = arrays(folder / "vargpt_v1.safetensors")
    nested = {
        name.removeprefix("vae_local."): t for name, t in weights.items() if name.startswith("vae_local.")
    }
    config = VargptConfig(
        vision_config=meta["vision"],
        text_config=meta["text"],
        image_tokenizer_config=tokenizer_config(meta, nested),
        visual_decoder_config=decoder_config(meta, weights["vargpt_gen.class_emb.weight"].shape[0]),
        vision_feature_layer=meta["vision_feature_layer"],
        vision_feature_select_strategy=meta["vision_feature_select_strategy"],
        image_token_id=meta["image_token_id"],
        image_start_token_id=meta["special_tokens"]["image_gen_start_token_id"],
        image_end_token_id=meta["special_tokens"]["image_gen_end_token_id"],
        image_pad_token_id=meta["special_tokens"]["image_gen_pad_token_id"],
    )
    model = Vargpt(config).eval()
    model.load_state_dict(renamed(weights, vargpt_names))
    return model, values


@torch.no_grad()
def test_golden_image_tokenizer_gives_the_published_features_and_indices(tokenizer_case):
    tokenizer, values = tokenizer_case

    close(tokenizer.latent(values["in.image"]), values["out.features"])

    codes = tokenizer.encode(values["in.image"])
    for k, codes_BN in enumerate(codes):
        assert torch.equal(codes_BN, values[f"out.indices.{k}"].view_as(codes_BN)), f"scale {k}"


@torch.no_grad()
def test_golden_image_tokenizer_gives_the_published_teacher_forcing_and_pictures(tokenizer_case):
    tokenizer, values = tokenizer_case
    codes = tokenizer.encode(values["in.image"])

    close(tokenizer.quantizer.decoder_input(codes), values["out.teacher_forcing_input"])
    close(tokenizer.decode(codes), values["out.reconstruction"])
    close(tokenizer.decode(codes[:1]), values["out.reconstruction_first_scale"])


@torch.no_grad()
def test_golden_visual_decoder_gives_the_published_logits(decoder_case):
    decoder, values = decoder_case

    logits = decoder(decoder.start_embedding(values["in.labels"]), values["in.teacher_forcing_input"])

    close(logits, values["out.logits"])


@torch.no_grad()
def test_golden_visual_decoder_draws_the_published_greedy_picture(decoder_case, tokenizer_case):
    decoder, values = decoder_case
    tokenizer, quantizer = tokenizer_case[0], tokenizer_case[0].quantizer
    labels, scales = values["in.labels"], decoder.scales
    null = torch.full_like(labels, decoder.config.null_start)
    cond = decoder.start_embedding(torch.cat([labels, null]))
    cache, x, codes = DecoderCache(decoder.config.depth), decoder.embed_start(cond), []

    for k in range(len(scales)):
        cond_logits, uncond_logits = decoder.predict(x, cond, cache).chunk(2)
        weight = 1.5 * k / max(len(scales) - 1, 1)
        codes.append(((1 + weight) * cond_logits - weight * uncond_logits).argmax(-1))
        if k + 1 < len(scales):
            decoder_input = quantizer.downsample(quantizer.canvas(codes), k + 1)
            x = decoder.embed_scales(decoder_input, scale_offsets(scales)[k + 1]).repeat(2, 1, 1)

    close((tokenizer.decode(codes) + 1) / 2, values["out.greedy_cfg1.5_image"])


@torch.no_grad()
def test_golden_vargpt_understands_as_published(vargpt_case):
    model, values = vargpt_case
    input_ids = values["in.understand.input_ids"]

    prediction = model.predict(input_ids, pixel_values=values["in.understand.pixel_values"])
    logits = model.text_logits(prediction.hidden)
    labels = input_ids.masked_fill(input_ids == model.config.image_token_id, -100)

    close(logits, values["out.understand.logits"])
    close(F.cross_entropy(logits[:, :-1].mT, labels[:, 1:]).view(1), values["out.understand.loss"])


@torch.no_grad()
def test_golden_vargpt_draws_as_published(vargpt_case):
    model, values = vargpt_case
    input_ids = values["in.generate.input_ids"]

    prediction = model.predict(input_ids, target_images=TargetImages(pixels=values["in.generate.image"]))
    text_logits = model.text_logits(prediction.hidden)
    # The released text loss supervises prompts and padding too, all but image positions; ours does not.
    labels = input_ids.masked_fill(input_ids == model.config.image_pad_token_id, -100)
    text_loss = F.cross_entropy(text_logits[:, :-1].mT, labels[:, 1:])
    loss = text_loss + F.cross_entropy(prediction.image_logits.mT, prediction.image_codes)

    assert torch.equal(prediction.image_codes, values["out.generate.image_indices"])
    close(text_logits, values["out.generate.text_logits"])
    close(prediction.image_logits, values["out.generate.image_logits"])
    close(loss.view(1), values["out.generate.loss"])
