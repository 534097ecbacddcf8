"""The order of an epoch: int64 (N,), the sample at each position, as its place in the chosen subset (see `Samples`).

`global_order`     a uniform permutation: the best shuffle, at the price of random reads
`window_order`     a few shards at a time: sequential reads, but a batch holds samples of those shards only
`stored_order`     the order in the shards
`weighted_order`   drawn with replacement, with a weight per sample
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.plan.seeding import Stream, draw_sequence, permutation, uniform

LANES = 64
"""Number of independent sequences of shards that a window order interleaves. Part of the format: saved states depend on it."""

SHARDS_PER_WINDOW = 4
"""Number of consecutive shards of a lane whose samples are shuffled together."""


def stored_order(count: int) -> NDArray[np.int64]:
    """Return the order in the shards: 0 .. count - 1."""
    return np.arange(count, dtype=np.int64)


def global_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a uniform permutation of `count` samples."""
    return permutation(draw_sequence(seed, Stream.SAMPLE, epoch, count))


def weighted_order(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw `len(weights)` samples with replacement, each with probability proportional to its weight."""
    return by_weight(uniform(draw_sequence(seed, Stream.SAMPLE, epoch, len(weights))), weights)


def by_weight(u: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Invert the cumulative weights: for each u in (0, 1) return the sample that it selects."""
    cumulative = np.cumsum(weights)
    last = np.flatnonzero(weights)[-1]  # without the clip, rounding could select a trailing sample of weight 0
    place: NDArray[np.int64] = np.searchsorted(cumulative, u * cumulative[-1], side="right").clip(max=last)
    return place


def window_order(shard: NDArray[np.integer], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return an order in which batch j takes its samples from lane j mod LANES, a few shards at a time.

    Shards are assigned in random order, each to the lane with the fewest samples so far. A lane shuffles the samples of
    SHARDS_PER_WINDOW consecutive shards together. If the number of processes divides LANES, each shard is therefore read by
    one process only, until lanes run out of samples. A batch is then filled from the lane that agrees with its own modulo the
    largest power of two (lane + LANES/2, then LANES/4, ...), which keeps shards in one process as long as possible.

    Args:
        shard: (N,) shard of each sample; any integers.
        batch_size: samples per batch.
        seed: key of the draws, together with `epoch`.
        epoch: the epoch, counted from 0.

    Returns:
        (N,) int64; each sample occurs exactly once.
    """
    count = len(shard)
    lanes = _lane_sequences(shard, seed, epoch)
    taken = [0] * LANES
    order = np.empty(count, dtype=np.int64)
    filled = 0
    for batch in range(-(-count // batch_size)):
        want = min(batch_size, count - filled)
        for lane in _nearest_lanes(batch % LANES):
            if not want:
                break
            got = lanes[lane][taken[lane] : taken[lane] + want]
            order[filled : filled + len(got)] = got
            taken[lane] += len(got)
            filled += len(got)
            want -= len(got)
    return order


def _lane_sequences(shard: NDArray[np.integer], seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the shuffled samples of each lane."""
    _, shard_of_sample, sizes = np.unique(shard, return_inverse=True, return_counts=True)
    samples_in_lane = np.zeros(LANES, dtype=np.int64)
    shards_in_lane = np.zeros(LANES, dtype=np.int64)
    lane_of = np.empty(len(sizes), dtype=np.int64)
    window_of = np.empty(len(sizes), dtype=np.int64)
    for shard_id in permutation(draw_sequence(seed, Stream.SHARD, epoch, len(sizes))):
        lane = int(np.argmin(samples_in_lane))
        lane_of[shard_id], window_of[shard_id] = lane, shards_in_lane[lane] // SHARDS_PER_WINDOW
        samples_in_lane[lane] += sizes[shard_id]
        shards_in_lane[lane] += 1
    group = lane_of * (1 + shards_in_lane.max() // SHARDS_PER_WINDOW) + window_of
    # NumPy's stable sort takes linear time for integers of up to 16 bits
    group = group.astype(np.min_scalar_type(group.max()))[shard_of_sample]
    shuffled = permutation(draw_sequence(seed, Stream.SAMPLE, epoch, len(shard)))
    return np.split(shuffled[np.argsort(group[shuffled], kind="stable")], np.cumsum(samples_in_lane)[:-1])


@lru_cache(maxsize=LANES)
def _nearest_lanes(lane: int) -> list[int]:
    """Return all lanes, sorted by how many low bits they share with `lane`; `lane` itself comes first."""
    return sorted(range(LANES), key=lambda other: -_shared_low_bits(lane, other))


def _shared_low_bits(a: int, b: int) -> int:
    difference = (a ^ b) | LANES
    return (difference & -difference).bit_length()
