"""The order of an epoch shows each sample once, and a window order keeps batches near each other in the shards."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from helpers.batches import Open, keys
from helpers.samples import TINY, N
from multimix_pipe.plan.order import (
    LANES,
    SHARDS_PER_WINDOW,
    by_weight,
    global_order,
    stored_order,
    weighted_order,
    window_order,
)


def shard_column(sizes: list[int]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


UNEVEN = [1 + 37 * i % 90 for i in range(150)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1000])
def test_orders_show_each_sample_once(count: int) -> None:
    for order in (stored_order(count), global_order(count, 0, 0)):
        assert np.array_equal(np.sort(order), np.arange(count))


def test_a_loader_shows_the_order_of_its_plan(opened: Open) -> None:
    for shuffle, order in (("global", global_order(N, 3, 1)), ("none", stored_order(N))):
        loader = opened(backend="torch", transform=TINY, shuffle=shuffle, seed=3, last_batch="partial")
        loader.set_epoch(1)
        assert keys(loader) == loader.index.keys(order)


def test_a_global_order_mixes_sorted_shards_as_a_random_permutation_does() -> None:
    classes, per_class, batch_size, epochs = 20, 1000, 256, 30
    count = classes * per_class
    draws = np.random.default_rng(0).multivariate_hypergeometric([per_class] * classes, batch_size, size=20_000)
    expected = np.sort(draws)[:, -2:].sum(1)  # of the two most common classes in a batch
    shown, taus = [], []
    for epoch in range(epochs):
        order = global_order(count, 0, epoch)
        batches = (order // per_class)[: count // batch_size * batch_size].reshape(-1, batch_size)
        counts = np.stack([np.bincount(batch, minlength=classes) for batch in batches])
        shown.append(np.sort(counts)[:, -2:].sum(1))
        taus.append(stats.kendalltau(np.arange(count), order).statistic)
    error = expected.std() / np.sqrt(np.size(shown))
    assert abs(np.mean(shown) - expected.mean()) < 4 * error
    tau_error = np.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
    assert stats.kstest(np.array(taus) / tau_error, "norm").pvalue > 0.01
    assert np.abs(taus).max() < 4 * tau_error


def test_a_global_order_differs_by_epoch_and_seed_and_repeats_for_both() -> None:
    order = global_order(500, 1, 2)
    assert np.array_equal(order, global_order(500, 1, 2))
    for other in (global_order(500, 1, 3), global_order(500, 2, 2)):
        assert np.mean(order == other) < 0.05


@pytest.mark.parametrize("sizes", [[1], [5], [1, 1, 1], [100] * 7, [10] * 64, [10] * 300, UNEVEN], ids=len)
@pytest.mark.parametrize("batch_size", [1, 7, 64, 5000])
def test_a_window_order_shows_each_sample_once(sizes: list[int], batch_size: int) -> None:
    shard = shard_column(sizes)
    order = window_order(shard, batch_size, 3, 1)
    assert np.array_equal(np.sort(order), np.arange(len(shard)))
    assert np.array_equal(order, window_order(shard, batch_size, 3, 1))


def test_a_window_order_needs_neither_sorted_nor_dense_shard_numbers() -> None:
    shard = np.array([9, 2, 9, 2, 70_000, 9], dtype=np.int32)
    assert np.array_equal(np.sort(window_order(shard, 2, 0, 0)), np.arange(6))


def test_window_batch_j_comes_from_few_shards_of_lane_j() -> None:
    shard, batch_size = shard_column([100] * 512), 32
    order = window_order(shard, batch_size, 0, 0)
    batches = shard[order][: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    per_batch = [len(np.unique(batch)) for batch in batches]
    assert np.mean(np.array(per_batch) <= SHARDS_PER_WINDOW) > 0.9
    lane_of: dict[int, int] = {}
    foreign = 0
    for j, batch in enumerate(batches):
        foreign += sum(lane_of.setdefault(int(number), j % LANES) != j % LANES for number in batch)
    assert foreign < 0.02 * len(order)


def test_a_window_shuffles_the_samples_of_its_shards_together() -> None:
    shard = shard_column([100] * 512)
    first = shard[window_order(shard, 100, 0, 0)[:100]]
    assert len(np.unique(first)) == SHARDS_PER_WINDOW


@pytest.mark.parametrize(("sizes", "allowed"), [([100] * 512, 0.02), (UNEVEN * 4, 0.2)])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_a_shard_is_read_by_one_process_where_w_divides_the_lanes(
    sizes: list[int], allowed: float, world_size: int
) -> None:
    shard, batch_size = shard_column(sizes), 16
    process = np.arange(len(shard)) // batch_size % world_size
    pairs = np.unique(np.stack([shard[window_order(shard, batch_size, 0, 0)], process]), axis=1)
    readers = np.bincount(pairs[0])
    assert np.mean(readers > 1) <= allowed


def test_four_shards_serve_four_processes_one_each() -> None:
    shard = shard_column([96] * 4)
    process = np.arange(384) // 16 % 4
    pairs = np.unique(np.stack([shard[window_order(shard, 16, 0, 0)], process]), axis=1)
    assert pairs.shape[1] == 4


def test_weighted_draws_follow_the_weights_and_never_show_weight_zero() -> None:
    weights = np.tile([0.0, 1.0, 0.0, 3.0, 0.5, 0.0], 5000)
    order = weighted_order(weights, 0, 0)
    assert len(order) == len(weights)
    counts = np.bincount(order % 6, minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    expected = np.array([1.0, 3.0, 0.5]) / 4.5 * len(order)
    assert stats.chisquare(counts[[1, 3, 4]], expected).pvalue > 0.01


def test_the_ends_of_the_weighted_draw_stay_on_samples_with_weight() -> None:
    weights = np.array([0.0, 0.1, 0.2, 0.0])
    assert by_weight(np.array([2.0**-53, 1 - 2.0**-53]), weights).tolist() == [1, 2]
