"""The order of an epoch: which sample each position shows, int64 (N,) of numbers into the (sub)set of samples.

`global_order`   a uniform permutation: the statistically right one, random reads
`window_order`   a few shards at a time: sequential reads; a batch shows only those shards' samples
`stored_order`   as the shards hold them
`weighted_order` drawn with replacement, by a weight a sample
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.plan.seeding import Stream, draw_sequence, permutation, uniform

LANES = 64
"""Independent sequences of shards that a window order interleaves; part of the format, so that a state can be resumed."""

SHARDS_PER_WINDOW = 4
"""Shards of a lane whose samples are shuffled together."""


def stored_order(count: int) -> NDArray[np.int64]:
    """Positions show the samples as stored."""
    return np.arange(count, dtype=np.int64)


def global_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A uniform permutation of `count` samples."""
    return permutation(draw_sequence(seed, Stream.SAMPLE, epoch, count))


def weighted_order(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """`len(weights)` independent draws with replacement; sample i comes with probability weights[i] / sum(weights)."""
    return by_weight(uniform(draw_sequence(seed, Stream.SAMPLE, epoch, len(weights))), weights)


def by_weight(u: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each u in (0, 1) the sample whose part of the summed weights it falls into."""
    cumulative = np.cumsum(weights)
    last = np.flatnonzero(weights)[-1]  # rounding must not reach a sample of weight 0 at the end
    sample: NDArray[np.int64] = np.searchsorted(cumulative, u * cumulative[-1], side="right").clip(max=last)
    return sample


def window_order(shard: NDArray[np.integer], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Batch j shows samples of lane j mod LANES, a few shards at a time.

    Shards are dealt in random order, each to the lane with the fewest samples so far; a lane shuffles the samples of
    SHARDS_PER_WINDOW consecutive shards of its own. A process of W, W dividing LANES, so reads its lanes' shards and no other
    process reads them, until lanes run dry: then a batch is filled from the lane that shares the longest residue with its own
    (lane + LANES/2, then LANES/4, ...), which keeps it in the same process for as long as possible.

    shard: (N,) number of the shard of each sample. Each sample occurs exactly once.
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
    shards, shard_number, sizes = np.unique(shard, return_inverse=True, return_counts=True)
    load = np.zeros(LANES, dtype=np.int64)
    dealt = np.zeros(LANES, dtype=np.int64)
    lane_of = np.empty(len(shards), dtype=np.int64)
    window_of = np.empty(len(shards), dtype=np.int64)
    for number in permutation(draw_sequence(seed, Stream.SHARD, epoch, len(shards))):
        lane = int(np.argmin(load))
        lane_of[number], window_of[number] = lane, dealt[lane] // SHARDS_PER_WINDOW
        load[lane] += sizes[number]
        dealt[lane] += 1
    group = lane_of * (1 + dealt.max() // SHARDS_PER_WINDOW) + window_of
    group = group.astype(np.min_scalar_type(group.max()))[shard_number]  # up to 16 bits NumPy sorts in linear time
    shuffled = permutation(draw_sequence(seed, Stream.SAMPLE, epoch, len(shard)))
    return np.split(shuffled[np.argsort(group[shuffled], kind="stable")], np.cumsum(load)[:-1])


@lru_cache(maxsize=LANES)
def _nearest_lanes(lane: int) -> list[int]:
    """All lanes, `lane` first, then by how many low bits they share with it."""
    return sorted(range(LANES), key=lambda other: -_shared_low_bits(lane, other))


def _shared_low_bits(a: int, b: int) -> int:
    difference = (a ^ b) | LANES
    return (difference & -difference).bit_length()
