"""Laws of the backbones: every scene once an epoch, the same run from the same seed, and it learns."""

import contextlib
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
from training.backbones.fit import FitSettings, Stopped, fit
from training.backbones.image_tokenizer import CodebookAverage, psnr, train_tokenizer
from training.backbones.part_checkpoints import PartCheckpoints, never
from training.backbones.vision_tower import accuracies, in_random_colors, train_vision
from training.backbones.visual_decoder import train_decoder
from training.digits.scene_pool import ScenePool, batch_indices, read_pool
from training.params import DecoderParams, OptimizerParams, ScheduleParams, TokenizerParams, VisionParams

OPTIMIZER = OptimizerParams(weight_decay=0.05, beta1=0.9, beta2=0.95, clip_norm=1.0)


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
    seen = torch.cat([batch_indices(step, 12, 30, seed=1) for step in range(5)])

    assert sorted(seen[:30].tolist()) == list(range(30))
    assert sorted(seen[30:].tolist()) == list(range(30))
    assert seen[:30].tolist() != seen[30:].tolist()
    assert torch.equal(seen, torch.cat([batch_indices(step, 6, 30, seed=1) for step in range(10)]))


def train(pool, steps, seed=0):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(preset("tiny").image_tokenizer_config)
    params = TokenizerParams(**schedule(steps=steps, codebook_decay=0.9, revive_every=5))
    losses = []
    settings = FitSettings(
        optimizer=OPTIMIZER, seed=seed, report=lambda step, parts: losses.append(sum(parts.values()))
    )
    train_tokenizer(tokenizer, pool, params, settings)
    return tokenizer, losses


def test_the_tokenizer_learns_and_the_same_seed_gives_the_same_bits(pool):
    tokenizer, losses = train(pool, 40)
    again, same_losses = train(pool, 40)

    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert losses == same_losses
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert psnr(tokenizer, pool, 16) > psnr(ImageTokenizer(tokenizer.config), pool, 16)


def test_entries_that_nobody_chooses_are_put_where_vectors_are():
    tokenizer = ImageTokenizer(preset("tiny").image_tokenizer_config)
    codebook = CodebookAverage(tokenizer, decay=0.5)
    vectors = torch.randn(50, 16) + 7
    for _ in range(20):
        codebook.update([torch.zeros(50, dtype=torch.long)], [vectors])

    revived = codebook.revive(vectors)

    assert revived == len(codebook.codebook_VZ) - 1
    torch.testing.assert_close(codebook.codebook_VZ[0], vectors.mean(0), atol=0.2, rtol=0.05)
    assert (codebook.codebook_VZ[1:].mean(1) > 4).all()


def schedule(**more):
    return {"steps": 12, "batch": 8, "lr": 2e-3, "muon_lr": 6e-3, "warmup": 2, "end": 0.0, "ema": 0.9} | more


def test_the_vision_tower_learns_what_a_scene_shows(pool):
    config = preset("tiny")
    torch.manual_seed(0)
    tower = VisionTower(config.vision_config, config.vision_feature_layer, "full")
    losses = []

    settings = FitSettings(optimizer=OPTIMIZER, seed=0, report=lambda step, parts: losses.append(parts))
    heads = train_vision(tower, pool, VisionParams(**schedule(random_colors=0.5)), settings)

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


def test_the_decoder_learns_codes_and_what_vargpt_will_open_pyramids_with(pool):
    config = preset("tiny")
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config.image_tokenizer_config).eval()
    decoder = VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config)
    losses = []

    def report(step, parts):
        losses.append(parts["codes"])

    classes = train_decoder(
        decoder,
        tokenizer,
        pool,
        DecoderParams(**schedule(drop=0.5, code_corruption=0.3, softness=0.15)),
        FitSettings(optimizer=OPTIMIZER, seed=0, report=report),
    )

    assert losses[-1] < losses[0]
    dropped = classes(pool, torch.arange(2), torch.tensor([True, False]))
    assert torch.equal(dropped[0], classes.null)
    assert not torch.equal(dropped[1], classes.null)
    started = [decoder.start_embedding.weight[row] for row in (config.visual_decoder_config.image_start, -1)]
    assert not torch.equal(*started)


class KilledError(Exception):
    """What a kill looks like from inside: nothing more is saved."""


def learned_in_pieces(folder, train_part, stops):
    """A part trained by one attempt for each stop, and then to its end; how many steps each attempt took."""
    counts = []
    for stop in (*stops, None):
        taken = []

        def report(step, parts, stop=stop, taken=taken):
            taken.append(step)
            if stop == step:
                raise KilledError

        checkpoints = PartCheckpoints(folder, "same", every=3, should_stop=never)
        with contextlib.suppress(KilledError):
            part = train_part(
                FitSettings(optimizer=OPTIMIZER, seed=0, report=report, checkpoints=checkpoints)
            )
        counts.append(taken)
    return part, counts


def tokenizer_part(pool):
    def train_part(settings):
        torch.manual_seed(0)
        part = ImageTokenizer(preset("tiny").image_tokenizer_config)
        params = TokenizerParams(**schedule(codebook_decay=0.9, revive_every=2))
        train_tokenizer(part, pool, params, settings)
        return part

    return train_part


def vision_part(pool):
    def train_part(settings):
        config = preset("tiny")
        torch.manual_seed(0)
        part = VisionTower(config.vision_config, config.vision_feature_layer, "full")
        train_vision(part, pool, VisionParams(**schedule(random_colors=0.5)), settings)
        return part

    return train_part


def decoder_part(pool):
    def train_part(settings):
        config = preset("tiny")
        torch.manual_seed(0)
        tokenizer = ImageTokenizer(config.image_tokenizer_config).eval()
        part = VisualDecoder(config.visual_decoder_config, config.image_tokenizer_config)
        params = DecoderParams(**schedule(drop=0.5, code_corruption=0.3, softness=0.15))
        train_decoder(part, tokenizer, pool, params, settings)
        return part

    return train_part


@pytest.mark.parametrize("kind", [tokenizer_part, vision_part, decoder_part])
def test_a_part_that_was_killed_twice_ends_with_the_same_bits(pool, tmp_path, kind):
    whole, _ = learned_in_pieces(tmp_path / "whole", kind(pool), ())
    part, attempts = learned_in_pieces(tmp_path / "pieces", kind(pool), (4, 7))

    assert attempts == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10, 11]]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, part.state_dict()[name]), name


def test_a_part_asked_to_stop_keeps_every_step(tmp_path):
    line = torch.nn.Linear(2, 2)
    taken = []
    checkpoints = PartCheckpoints(tmp_path, "same", every=100, should_stop=lambda: len(taken) == 2)
    settings = FitSettings(
        optimizer=OPTIMIZER, seed=0, report=lambda step, parts: taken.append(step), checkpoints=checkpoints
    )

    with pytest.raises(Stopped, match="stopped after 2 of 12 steps"):
        fit(
            [line],
            ScheduleParams(**schedule()),
            settings,
            lambda step: {"square": line(torch.ones(2)).square().sum()},
        )

    step, tree = checkpoints.load()
    assert step == 2
    assert torch.equal(tree["weights"][0], line.weight.detach())


def test_what_was_learned_from_something_else_is_removed(tmp_path):
    PartCheckpoints(tmp_path / "part", "old data", every=1).save(3, {"weights": [torch.ones(2)]})

    assert PartCheckpoints(tmp_path / "part", "new data", every=1).load() is None
    assert not (tmp_path / "part").exists()


def test_a_sealed_part_is_finished_and_alone(tmp_path):
    checkpoints = PartCheckpoints(tmp_path, "same", every=1)
    checkpoints.save(5, {"weights": [torch.zeros(2)]})
    assert checkpoints.finished() is None

    checkpoints.seal(5, {"weight": torch.ones(2)})

    assert torch.equal(checkpoints.finished()["weight"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1
