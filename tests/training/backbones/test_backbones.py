"""Laws of the backbones: each learns, one seed gives one result, and a resumed training the same bits."""

import contextlib

import numpy as np
import pytest
import torch

from model.backbones import VisionTower
from model.config import preset
from model.image_tokenizer import ImageTokenizer
from model.visual_decoder import VisualDecoder
from tests.training.scene_shards import write_scene_shard
from training.backbones.backbone_checkpoints import BackboneCheckpoints
from training.backbones.fit import FitSettings
from training.backbones.image_tokenizer import CodebookEma, train_tokenizer
from training.backbones.vision_tower import clip_normalized, in_random_colors, train_vision
from training.backbones.visual_decoder import train_decoder
from training.digits.scene_pool import ScenePool, read_pool
from training.params import DecoderParams, OptimizerParams, TokenizerParams, VisionParams

OPTIMIZER_PARAMS = OptimizerParams(weight_decay=0.05, beta1=0.9, beta2=0.95, clip_norm=1.0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Scenes of one colour each."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    images = [np.full((32, 32, 3), rng.integers(0, 255, 3), np.uint8) for _ in range(64)]
    write_scene_shard(folder / "train-00000.tar", images)
    return read_pool(folder, "train")


def train_a_tokenizer(pool, steps, seed=0):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(preset("tiny").image_tokenizer_config)
    params = TokenizerParams(**schedule(steps=steps, codebook_decay=0.9, revive_every=5))
    losses = []
    settings = FitSettings(
        optimizer_params=OPTIMIZER_PARAMS,
        seed=seed,
        on_step=lambda step, by_name: losses.append(sum(by_name.values())),
    )
    train_tokenizer(tokenizer, pool, params, settings)
    return tokenizer, losses


@torch.no_grad()
def reconstruction_error(tokenizer, pool):
    pixels = pool.pixels_at(torch.arange(16))
    return (tokenizer.decode(tokenizer.encode(pixels)) - pixels).square().mean()


def test_the_tokenizer_learns_and_the_same_seed_gives_the_same_bits(pool):
    tokenizer, losses = train_a_tokenizer(pool, 40)
    again, same_losses = train_a_tokenizer(pool, 40)

    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert losses == same_losses
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert reconstruction_error(tokenizer, pool) < reconstruction_error(
        ImageTokenizer(tokenizer.config), pool
    )


def test_unused_codebook_entries_are_revived_at_vectors_of_the_batch():
    tokenizer = ImageTokenizer(preset("tiny").image_tokenizer_config)
    codebook = CodebookEma(tokenizer, decay=0.5)
    vectors = torch.randn(50, 16) + 7
    for _ in range(20):
        codebook.update([torch.zeros(50, dtype=torch.long)], [vectors])

    revived = codebook.revive(vectors)

    assert revived == len(codebook.codebook_VZ) - 1
    torch.testing.assert_close(codebook.codebook_VZ[0], vectors.mean(0), atol=0.2, rtol=0.05)
    assert (codebook.codebook_VZ[1:].mean(1) > 4).all()


def schedule(**more):
    return {"steps": 12, "batch": 8, "lr": 2e-3, "muon_lr": 6e-3, "warmup": 2, "end": 0.0, "ema": 0.9} | more


def test_the_vision_tower_learns_to_classify_scenes(pool):
    config = preset("tiny")
    torch.manual_seed(0)
    tower = VisionTower(config.vision_config, config.vision_feature_layer, "full")
    losses = []

    settings = FitSettings(
        optimizer_params=OPTIMIZER_PARAMS, seed=0, on_step=lambda step, by_name: losses.append(by_name)
    )
    heads = train_vision(tower, pool, VisionParams(**schedule(random_colors=0.5)), settings)

    assert losses[-1]["background"] < 0.5 * losses[0]["background"]
    with torch.no_grad():
        _, _, background = heads(tower(clip_normalized(pool.pixels.float() / 255)))
    assert (background.argmax(1) == pool.backgrounds).all()
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


def test_the_decoder_learns_codes_a_null_class_and_two_start_embeddings(pool):
    config = preset("tiny")
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config.image_tokenizer_config).eval()
    decoder = VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config)
    losses = []

    class_embedding = train_decoder(
        decoder,
        tokenizer,
        pool,
        DecoderParams(**schedule(drop=0.5, code_corruption=0.3, softness=0.15)),
        FitSettings(
            optimizer_params=OPTIMIZER_PARAMS,
            seed=0,
            on_step=lambda step, by_name: losses.append(by_name["codes"]),
        ),
    )

    assert losses[-1] < losses[0]
    dropped, kept = class_embedding(pool, torch.arange(2), torch.tensor([True, False]))
    assert torch.equal(dropped, class_embedding.null)
    assert not torch.equal(kept, class_embedding.null)
    image_start, null_start = (
        decoder.start_embedding.weight[row] for row in (config.visual_decoder_config.image_start, -1)
    )
    assert not torch.equal(image_start, null_start)


class KilledError(Exception):
    """Ends a training as a kill does: nothing more is saved."""


def train_with_kills(folder, train, kill_at):
    """Train a backbone with one attempt for each kill and a last one; it, and the steps of every attempt."""
    attempts = []
    for last_step in (*kill_at, None):
        steps = []

        def on_step(step, losses, last_step=last_step, steps=steps):
            steps.append(step)
            if last_step == step:
                raise KilledError

        settings = FitSettings(
            optimizer_params=OPTIMIZER_PARAMS,
            seed=0,
            on_step=on_step,
            checkpoints=BackboneCheckpoints(folder, "same", every=3),
        )
        with contextlib.suppress(KilledError):
            backbone = train(settings)
        attempts.append(steps)
    return backbone, attempts


def tokenizer_training(pool):
    def train(settings):
        torch.manual_seed(0)
        backbone = ImageTokenizer(preset("tiny").image_tokenizer_config)
        params = TokenizerParams(**schedule(codebook_decay=0.9, revive_every=2))
        train_tokenizer(backbone, pool, params, settings)
        return backbone

    return train


def vision_training(pool):
    def train(settings):
        config = preset("tiny")
        torch.manual_seed(0)
        backbone = VisionTower(config.vision_config, config.vision_feature_layer, "full")
        train_vision(backbone, pool, VisionParams(**schedule(random_colors=0.5)), settings)
        return backbone

    return train


def decoder_training(pool):
    def train(settings):
        config = preset("tiny")
        torch.manual_seed(0)
        tokenizer = ImageTokenizer(config.image_tokenizer_config).eval()
        backbone = VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config)
        params = DecoderParams(**schedule(drop=0.5, code_corruption=0.3, softness=0.15))
        train_decoder(backbone, tokenizer, pool, params, settings)
        return backbone

    return train


@pytest.mark.parametrize("training", [tokenizer_training, vision_training, decoder_training])
def test_a_backbone_that_was_killed_twice_ends_with_the_same_bits(pool, tmp_path, training):
    undisturbed, _ = train_with_kills(tmp_path / "undisturbed", training(pool), kill_at=())
    killed, attempts = train_with_kills(tmp_path / "killed", training(pool), kill_at=(4, 7))

    assert attempts == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10, 11]]
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, killed.state_dict()[name]), name
