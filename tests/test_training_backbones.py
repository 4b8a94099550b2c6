"""Laws of the backbones: every scene once an epoch, the same run from the same seed, and it learns."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from model.backbones import VisionTower
from model.config import preset
from model.image_tokenizer import ImageTokenizer
from model.visual_decoder import VisualDecoder
from training.backbone_decoder import pool_codes, train_decoder
from training.backbone_tokenizer import CodebookAverage, psnr, train_tokenizer
from training.backbone_vision import accuracies, in_random_colors, train_vision
from training.fit import Course
from training.params import DecoderParams, TokenizerParams, VisionParams
from training.scene_pool import ScenePool, batch_at, read_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "train-00000.tar", "w") as tar:
        for index in range(64):
            buffer = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), rng.integers(0, 255, 3), np.uint8)).save(buffer, "PNG")
            facts = {"digit": index % 10, "color": "red", "background": "gray"}
            for name, content in (("png", buffer.getvalue()), ("json", json.dumps(facts).encode())):
                entry = tarfile.TarInfo(f"{index:06d}.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return read_pool(folder, "train")


def test_a_pool_holds_pixels_and_attributes(pool):
    assert len(pool) == 64
    assert pool.pixels.shape == (64, 3, 32, 32)
    assert pool.digits[:3].tolist() == [0, 1, 2]
    assert pool.backgrounds.unique().tolist() == [2]


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no shards test-\*\.tar in"):
        read_pool(tmp_path, "test")


def test_every_scene_comes_once_an_epoch_whatever_the_batch():
    seen = torch.cat([batch_at(step, 12, 30, seed=1) for step in range(5)])

    assert sorted(seen[:30].tolist()) == list(range(30))
    assert sorted(seen[30:].tolist()) == list(range(30))
    assert seen[:30].tolist() != seen[30:].tolist()
    assert torch.equal(seen, torch.cat([batch_at(step, 6, 30, seed=1) for step in range(10)]))


def train(pool, steps, seed=0):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(preset("tiny").image_tokenizer_config)
    params = TokenizerParams(
        steps=steps, batch=8, lr=2e-3, warmup=2, ema=0.9, codebook_decay=0.9, revive_every=5
    )
    losses = []
    course = Course(seed=seed, report=lambda step, parts: losses.append(sum(parts.values())))
    train_tokenizer(tokenizer, pool, params, course)
    return tokenizer, losses


def test_the_tokenizer_learns_and_the_same_seed_gives_the_same_bits(pool):
    tokenizer, losses = train(pool, 80)
    again, same_losses = train(pool, 80)

    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert losses == same_losses
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert psnr(tokenizer, pool, 16) > psnr(ImageTokenizer(tokenizer.config), pool, 16)


def test_entries_that_nobody_chooses_are_put_where_vectors_are():
    tokenizer = ImageTokenizer(preset("tiny").image_tokenizer_config)
    codebook = CodebookAverage(tokenizer, decay=0.5)
    vectors = torch.randn(50, 16) + 7
    for _ in range(4):
        codebook.update([torch.zeros(50, dtype=torch.long)], [vectors])

    revived = codebook.revive(vectors)

    assert revived == 1023
    torch.testing.assert_close(codebook.codebook_VZ[0], vectors.mean(0), atol=0.2, rtol=0.05)
    assert (codebook.codebook_VZ[1:].mean(1) > 4).all()


def schedule(**more):
    return {"steps": 12, "batch": 8, "lr": 2e-3, "warmup": 2, "ema": 0.9} | more


def test_the_vision_tower_learns_what_a_scene_shows(pool):
    config = preset("tiny")
    torch.manual_seed(0)
    tower = VisionTower(config.vision_config, config.vision_feature_layer, "full")
    losses = []

    course = Course(seed=0, report=lambda step, parts: losses.append(parts))
    heads = train_vision(tower, pool, VisionParams(**schedule(random_colors=0.5)), course)

    assert losses[-1]["background"] < 0.5 * losses[0]["background"]
    assert accuracies(tower, heads, pool)["background"] == 1.0
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_random_colors_keep_the_shape_and_change_the_palette():
    ink = torch.zeros(32, 32)
    ink[8:20, 10:14] = 1
    red, gray = torch.tensor([222.0, 28, 36]), torch.tensor([130.0, 130, 130])
    pixels = (ink * red[:, None, None] + (1 - ink) * gray[:, None, None]).round().to(torch.uint8)[None]
    pool = ScenePool(pixels, torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))

    shown = in_random_colors(pool, torch.tensor([0]))[0]

    front, back = shown[:, 10, 12], shown[:, 0, 0]
    assert (front - back).abs().max() > 0.3
    torch.testing.assert_close(shown, back[:, None, None] + ink * (front - back)[:, None, None])


def test_the_decoder_learns_codes_and_leaves_the_start_embedding_alone(pool):
    config = preset("tiny")
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config.image_tokenizer_config).eval()
    decoder = VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config)
    losses = []

    def report(step, parts):
        losses.append(parts["codes"])

    condition = train_decoder(
        decoder, tokenizer, pool, DecoderParams(**schedule(drop=0.5)), Course(seed=0, report=report)
    )

    assert losses[-1] < losses[0]
    dropped = condition(pool, torch.arange(2), torch.tensor([True, False]))
    assert torch.equal(dropped[0], condition.null)
    assert not torch.equal(dropped[1], condition.null)
    assert pool_codes(tokenizer, pool).shape == (64, 30)
