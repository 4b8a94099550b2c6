"""Laws of the scene pool: all pixels and attributes of a split, and every scene once an epoch."""

import numpy as np
import pytest
import torch

from tests.training.scene_shards import write_scene_shard
from training.digits.scene_pool import batch_indices, read_pool


def test_a_pool_holds_pixels_and_attributes(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
    write_scene_shard(tmp_path / "train-00000.tar", images[:7])
    write_scene_shard(tmp_path / "train-00001.tar", images[7:])

    pool = read_pool(tmp_path, "train")

    assert len(pool) == 12
    assert torch.equal(pool.pixels, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert pool.digits.tolist() == [*range(7), *range(5)]
    assert (pool.colors.unique().tolist(), pool.backgrounds.unique().tolist()) == ([0], [2])


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no shards test-\*\.tar in"):
        read_pool(tmp_path, "test")


def test_every_scene_comes_once_an_epoch_whatever_the_batch_size():
    order = torch.cat([batch_indices(step, 12, 30, seed=1) for step in range(5)])

    assert sorted(order[:30].tolist()) == list(range(30))
    assert sorted(order[30:].tolist()) == list(range(30))
    assert order[:30].tolist() != order[30:].tolist()
    assert torch.equal(order, torch.cat([batch_indices(step, 6, 30, seed=1) for step in range(10)]))
