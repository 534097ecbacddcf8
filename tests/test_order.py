"""The order of an epoch shows each sample once, at random, and a window order keeps batches near each other in the shards."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from helpers.batches import Open, keys
from helpers.samples import TINY, N
from multimix_pipe.plan import Plan, Samples
from multimix_pipe.plan.order import (
    LANES,
    MIN_FEISTEL,
    SHARDS_PER_WINDOW,
    Order,
    by_weight,
    global_order,
    stored_order,
    weighted_order,
    window_order,
)


def shard_column(sizes: list[int]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


UNEVEN = [1 + 37 * i % 90 for i in range(150)]


def places(order: Order, count: int) -> NDArray[np.int64]:
    """The place at each of `count` positions."""
    return order(np.arange(count))


def global_places(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return places(global_order(count, seed, epoch), count)


def test_a_global_order_of_any_number_up_to_5000_shows_each_sample_once() -> None:
    for count in range(1, 5001):
        shown = np.bincount(global_places(count, 0, count), minlength=count)
        assert len(shown) == count, count
        assert (shown == 1).all(), count


@pytest.mark.parametrize("count", [2**16 - 1, 2**16, 2**16 + 1, 99_991, 1000**2, 1000**2 + 1, 1_281_167])
def test_a_global_order_of_many_shows_each_sample_once(count: int) -> None:
    for seed, epoch in ((0, 0), (2**64 - 1, 2**63)):
        assert (np.bincount(global_places(count, seed, epoch), minlength=count) == 1).all()


@pytest.mark.parametrize("count", [10**9, 10**9 + 7])
def test_positions_of_a_huge_set_have_places_of_their_own(count: int) -> None:
    """A random function instead of a permutation would give about 45 pairs of equal places."""
    some = np.unique(np.random.default_rng(0).integers(0, count, 300_000))
    found = global_order(count, 1, 2)(some)
    assert 0 <= found.min() < 0.001 * count
    assert 0.999 * count < found.max() < count
    assert len(np.unique(found)) == len(some)


def test_a_place_does_not_depend_on_the_positions_it_is_asked_with() -> None:
    for order in (global_order(1000, 3, 4), weighted_order(np.cumsum(np.arange(1000) % 7.0), 3, 4)):
        whole = places(order, 1000)
        for some in (np.array([999]), np.array([3, 4, 5, 900, 0, 1]), np.arange(500, 510)):
            assert np.array_equal(order(some), whole[some])


def test_a_loader_shows_the_order_of_its_plan(opened: Open) -> None:
    for shuffle, order in (("global", global_order(N, 3, 1)), ("none", stored_order)):
        loader = opened(backend="torch", transform=TINY, shuffle=shuffle, seed=3, last_batch="partial")
        loader.set_epoch(1)
        assert keys(loader) == loader.index.keys(places(order, N))


def test_a_plan_of_a_billion_samples_keeps_no_array_of_them() -> None:
    class Billion(Samples):
        def __len__(self) -> int:
            return 10**9

    few = Billion(*(np.broadcast_to(np.int64(40), 10**9) for _ in range(4)))  # columns of one number each
    plan = Plan(few, TINY, None, "global", 0, 256)
    tracemalloc.start()
    try:
        for start in range(0, 2560, 256):
            assert len(plan.step(3, start, start + 256)) == 256
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


# A global order is like a uniformly random one. Keys are fixed, and each p-value must exceed 0.001; where a test has many
# p-values, it compares them with the uniform distribution. The smallest set that a Feistel network permutes has 64 samples.

ORDERS = {MIN_FEISTEL: 10_000, 65: 10_000, 97: 10_000, 1000: 2000}
"""Number of orders by number of samples."""


@pytest.fixture(scope="module", params=ORDERS)
def orders(request: pytest.FixtureRequest) -> NDArray[np.int64]:
    """(orders, count) with different seeds and epochs."""
    return np.stack([global_places(request.param, key // 2, key % 2) for key in range(ORDERS[request.param])])


def test_each_position_shows_each_sample_equally_often(orders: NDArray[np.int64]) -> None:
    count = orders.shape[1]
    columns = orders[:, np.linspace(0, count - 1, 50).astype(np.int64)] * 40 // count  # 40 cells
    expected = np.bincount(np.arange(count) * 40 // count) / count * len(orders)
    pvalues = [stats.chisquare(np.bincount(column, minlength=40), expected).pvalue for column in columns.T]
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001


@pytest.mark.parametrize("distance", [1, 2, "side", "half"])
def test_two_positions_show_two_samples_independently(orders: NDArray[np.int64], distance: int | str) -> None:
    count = orders.shape[1]
    step = {"side": int(np.ceil(np.sqrt(count))), "half": count // 2}.get(str(distance), distance)
    cells = np.bincount(np.arange(count) * 8 // count).astype(float)
    expected = np.outer(cells, cells) - np.diag(cells)  # no sample is shown twice
    pvalues = []
    for first in np.linspace(0, count - 1 - int(step), 20).astype(np.int64):
        pair = orders[:, [first, first + int(step)]] * 8 // count
        found = np.histogram2d(*pair.T, bins=8, range=[(0, 8), (0, 8)])[0]
        pvalues.append(stats.chisquare(found.ravel(), expected.ravel() / expected.sum() * len(orders)).pvalue)
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001


def test_neighbours_differ_by_every_number_equally_often(orders: NDArray[np.int64]) -> None:
    count = orders.shape[1]
    differences = (orders[:, 1:] - orders[:, :-1]) % count
    assert stats.chisquare(np.bincount(differences.ravel(), minlength=count)[1:]).pvalue > 0.001


def test_samples_stay_in_their_place_as_often_as_in_a_random_order(orders: NDArray[np.int64]) -> None:
    fixed = (orders == np.arange(orders.shape[1])).sum(1).clip(max=4)
    expected = np.append(stats.poisson.pmf(range(4), 1), stats.poisson.sf(3, 1)) * len(orders)
    assert stats.chisquare(np.bincount(fixed, minlength=5), expected).pvalue > 0.001


def test_serial_correlation_is_that_of_a_random_order(orders: NDArray[np.int64]) -> None:
    """For a random order it is about normal, with mean -1/(N-1) and variance 1/N. With six rounds this fails at lag sqrt(N)."""
    count = orders.shape[1]
    for lag in (1, 2, int(np.ceil(np.sqrt(count))), count // 2):
        centred = orders - (count - 1) / 2
        found = (centred[:, lag:] * centred[:, :-lag]).mean(1) / centred[0].var()
        error = found.std() / np.sqrt(len(orders))
        assert abs(found.mean() + 1 / (count - 1)) < 3.5 * error, lag  # p > 0.0005
        assert abs(found.std() * np.sqrt(count - lag) - 1) < 0.06, lag


def test_kendalls_tau_is_that_of_a_random_order(orders: NDArray[np.int64]) -> None:
    count = orders.shape[1]
    error = np.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
    taus = [stats.kendalltau(np.arange(count), order).statistic / error for order in orders[:500]]
    assert stats.kstest(taus, "norm").pvalue > 0.001


def test_a_global_order_mixes_sorted_shards_as_a_random_permutation_does() -> None:
    classes, per_class, batch_size, epochs = 20, 1000, 256, 30
    count = classes * per_class
    draws = np.random.default_rng(0).multivariate_hypergeometric([per_class] * classes, batch_size, size=20_000)
    expected = np.sort(draws)[:, -2:].sum(1)  # of the two most common classes in a batch
    shown, taus = [], []
    for epoch in range(epochs):
        order = global_places(count, 0, epoch)
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
    order = global_places(500, 1, 2)
    assert np.array_equal(order, global_places(500, 1, 2))
    for other in (global_places(500, 1, 3), global_places(500, 2, 2)):
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
    order = places(weighted_order(np.cumsum(weights), 0, 0), len(weights))
    assert len(order) == len(weights)
    counts = np.bincount(order % 6, minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    expected = np.array([1.0, 3.0, 0.5]) / 4.5 * len(order)
    assert stats.chisquare(counts[[1, 3, 4]], expected).pvalue > 0.01


def test_the_ends_of_the_weighted_draw_stay_on_samples_with_weight() -> None:
    weights = np.array([0.0, 0.1, 0.2, 0.0])
    assert by_weight(np.array([2.0**-53, 1 - 2.0**-53]), np.cumsum(weights)).tolist() == [1, 2]
