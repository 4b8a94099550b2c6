"""Laws of the mixture: order by seed and number alone, exact weights, every sample once before any twice."""

import pickle
from collections import Counter

import pytest

from training.data.mixture import BLOCK, Mixture, _quotas


def mixture(*parts, seed=0):
    return Mixture(
        [([f"{name}{index}" for index in range(size)], weight) for name, size, weight in parts], seed
    )


def sample_at(mixture, n):
    dataset, index = mixture.locate(n)
    return mixture.datasets[dataset][index]


def samples_between(mixture, start, stop):
    return [sample_at(mixture, n) for n in range(start, stop)]


def test_the_order_is_a_function_of_seed_and_number_alone():
    whole = samples_between(mixture(("a", 7, 0.6), ("b", 11, 0.4), seed=5), 0, 300)

    resumed = mixture(("a", 7, 0.6), ("b", 11, 0.4), seed=5)
    backwards = [sample_at(resumed, n) for n in reversed(range(300))]

    assert whole == backwards[::-1]
    assert whole[120:] == samples_between(pickle.loads(pickle.dumps(resumed)), 120, 300)
    assert whole != samples_between(mixture(("a", 7, 0.6), ("b", 11, 0.4), seed=6), 0, 300)


def test_the_order_stays_as_it_was_released():
    first = samples_between(mixture(("a", 5, 2.0), ("b", 3, 1.0), seed=0), 0, 12)

    assert " ".join(first) == "b0 b2 a1 b1 b2 b0 b1 a2 b1 b0 b2 a4"


def test_a_sample_far_away_is_located_without_walking_there():
    endless = mixture(("a", 1000, 1.0), ("b", 1000, 3.0))

    assert endless.locate(10**15) == endless.locate(10**15)


@pytest.mark.parametrize("start", [0, 3 * BLOCK - 500])
def test_every_sample_is_drawn_once_before_any_is_drawn_twice(start):
    size = 97
    weighted = mixture(("a", size, 0.37), ("b", 5, 0.63))
    seen = Counter(sample for sample in samples_between(weighted, 0, start) if sample[0] == "a")

    for n in range(start, start + 2000):
        sample = sample_at(weighted, n)
        if sample[0] == "a":
            seen[sample] += 1
            assert max(seen.values()) - (min(seen.values()) if len(seen) == size else 0) <= 1


def test_epochs_differ_in_their_order():
    single = mixture(("a", 50, 1.0))
    epochs = [samples_between(single, 50 * epoch, 50 * (epoch + 1)) for epoch in range(4)]

    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(epoch) for epoch in epochs}) == 1


def test_weights_are_exact_over_a_block_and_approximate_over_any_stretch():
    weighted = mixture(("a", 10, 3.0), ("b", 10, 1.0), ("c", 10, 0.0))

    block = Counter(sample[0] for sample in samples_between(weighted, BLOCK // 2, BLOCK + BLOCK // 2))
    stretch = Counter(sample[0] for sample in samples_between(weighted, 0, 2000))

    assert set(block) == {"a", "b"}
    assert block["a"] / BLOCK == pytest.approx(0.75, abs=0.01)
    assert stretch["a"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert Counter(sample[0] for sample in samples_between(weighted, 0, BLOCK))["a"] == BLOCK * 3 // 4


@pytest.mark.parametrize(
    "weights",
    [[1.0], [1, 1, 1], [1e-9, 1.0], [0.0, 5.0], [1e-9] * 200 + [1.0], [0.1] * 7, [1e300, 1.0, 1e-300]],
)
def test_quotas_fill_a_block_and_every_weighted_dataset_has_one(weights):
    quotas = _quotas(weights)

    assert sum(quotas) == BLOCK
    assert all((quota >= 1) == (weight > 0) for quota, weight in zip(quotas, weights, strict=True))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(["x"], -1.0)], r"mixture\[0\].*-1"),
        ([(["x"], 1.0), (["x"], float("nan"))], r"mixture\[1\].*nan"),
        ([(["x"], float("inf"))], "inf"),
        ([([], 1.0)], r"mixture\[0\].*empty"),
        ([(["x"], 0.0)], "positive"),
        ([], "positive"),
    ],
)
def test_an_impossible_mixture_is_refused_by_name(parts, message):
    with pytest.raises(ValueError, match=message):
        Mixture(parts, seed=0)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="-1"):
        mixture(("a", 2, 1.0)).locate(-1)
