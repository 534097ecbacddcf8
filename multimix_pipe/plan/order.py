"""The order of an epoch: which sample is at each position, as its place in the chosen subset (see `Samples`).

`global_order`     a random permutation, computed position by position: the best shuffle, at the price of random reads
`window_order`     a few shards at a time: sequential reads, but a batch holds samples of those shards only
`stored_order`     the order in the shards
`weighted_order`   drawn with replacement, with a weight per sample
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.plan.seeding import Stream, Words, draw_sequence, permutation, uniform

Places = NDArray[np.int64]
Order = Callable[[NDArray[np.int64]], Places]
"""Maps positions in [0, N) to places, both int64 of any number."""

LANES = 64
"""Number of independent sequences of shards that a window order interleaves. Part of the format: saved states depend on it."""

SHARDS_PER_WINDOW = 4
"""Number of consecutive shards of a lane whose samples are shuffled together."""


ROUNDS = 10
"""Rounds of the Feistel network. With 6 of them samples that are sqrt(N) positions apart are correlated where N is small: for 64
samples by 0.006, which 60,000 orders show at 12 standard errors. With 8 it is 4 standard errors, with 10 nothing is seen."""

MIN_FEISTEL = 64
"""Smaller sets are permuted by sorting, which costs nothing there: the halves of a Feistel network would be too small."""


def stored_order(positions: NDArray[np.int64]) -> Places:
    """Return the places of `positions` in the order of the shards: the positions themselves."""
    return positions


def global_order(count: int, seed: int, epoch: int) -> Order:
    """Return a random permutation of `count` samples."""
    if count >= MIN_FEISTEL:
        return Feistel(count, draw_sequence(seed, Stream.SAMPLE, epoch, Feistel.words(count)))
    return array_order(permutation(draw_sequence(seed, Stream.SAMPLE, epoch, count)))


def array_order(places: Places) -> Order:
    """Return the order whose places are given as an array (N,)."""
    return lambda positions: places[positions]


class Feistel:
    """A random permutation of [0, N), computed for each position on its own, in O(sqrt(N)) memory.

    A number in [0, a*b), with a and b close to sqrt(N) and a*b >= N, has two halves: x // b and x % b. Each round adds a random
    function of one half to the other half, modulo a or b, which is invertible whatever the function is. Results outside [0, N)
    are permuted again until they are inside. This is the generalised Feistel cipher of Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains", with cycle walking; a table of random words is each round's function.
    """

    def __init__(self, count: int, words: Words) -> None:
        """`count` is N; `words` are `Feistel.words(N)` random words."""
        self._count = count
        self._sides = a, b = _sides(count)
        words = words.reshape(ROUNDS // 2, a)
        self._of_right = _below(a, words >> np.uint64(32))
        self._of_left = _below(b, words & np.uint64(2**32 - 1))

    @staticmethod
    def words(count: int) -> int:
        """Return the number of random words that the permutation of `count` needs."""
        return ROUNDS // 2 * _sides(count)[0]

    def __call__(self, positions: NDArray[np.int64]) -> Places:
        """Return the place of each position."""
        places = self._permute(positions)
        while (outside := np.flatnonzero(places >= self._count)).size:  # less than 1 in sqrt(N)
            places[outside] = self._permute(places[outside])
        return places

    def _permute(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        a, b = self._sides
        left, right = numbers // b, numbers % b
        for of_right, of_left in zip(self._of_right, self._of_left, strict=True):
            left = left + of_right[right]
            left -= a * (left >= a)
            right = right + of_left[left]
            right -= b * (right >= b)
        permuted: NDArray[np.int64] = left * b + right
        return permuted


def _sides(count: int) -> tuple[int, int]:
    """Return a >= b with a*b >= count, and less than a more."""
    a = isqrt(count - 1) + 1
    return a, -(-count // a)


def _below(high: int, halves: Words) -> NDArray[np.int64]:
    """Convert 32 random bits each to integers in [0, high)."""
    return (halves * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def weighted_order(cumulative: NDArray[np.float64], seed: int, epoch: int) -> Order:
    """Draw each position's sample with replacement, by the cumulative weights (N,) of all samples."""

    def places(positions: NDArray[np.int64]) -> Places:
        runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
        words = [draw_sequence(seed, Stream.SAMPLE, epoch, len(run), start=int(run[0])) for run in runs if len(run)]
        return by_weight(uniform(np.concatenate(words)), cumulative)

    return places


def by_weight(u: NDArray[np.float64], cumulative: NDArray[np.float64]) -> Places:
    """Invert the cumulative weights: for each u in (0, 1) return the sample that it selects."""
    last = np.searchsorted(
        cumulative, cumulative[-1]
    )  # without the clip, rounding could select a trailing sample of weight 0
    place: Places = np.searchsorted(cumulative, u * cumulative[-1], side="right").clip(max=last)
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
