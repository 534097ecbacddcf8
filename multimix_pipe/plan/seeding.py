"""Random words keyed by coordinates (seed, stream, epoch, position), never by history.

Philox is a counter-based generator: word w of position p is a function of its key and counter, so any range of positions is
one vectorised call, and nothing has to be replayed to resume in the middle. Only raw words are used: NumPy guarantees the
bit stream of a bit generator, not what its Generator methods make of it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_WORDS_PER_BLOCK = 4  # Philox4x64 gives four words a counter value


class Stream(IntEnum):
    """What a word is drawn for: streams of one seed never share a word. The numbers are part of the format."""

    SAMPLE = 1
    SHARD = 2
    CROP = 3
    PARTNER = 4
    LAM = 5
    REPLACEMENT = 6
    FIELD = 7


def draw_words(
    seed: int, stream: Stream, epoch: int, start: int, count: int, per_position: int, *, attempt: int = 0
) -> Words:
    """Words of positions [start, start + count): uint64 (count, per_position).

    `attempt` selects an independent set for the same positions. The result depends on `per_position` only through its
    number of blocks of four words.
    """
    blocks = -(-per_position // _WORDS_PER_BLOCK)
    # typed arrays: NumPy makes a list with an int of 2**63 or more a list of floats, which merges seeds
    key = np.array([seed, int(stream)], dtype=np.uint64)
    counter = np.array([start * blocks, attempt, epoch, 0], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    words = generator.random_raw(count * blocks * _WORDS_PER_BLOCK)
    return words.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :per_position]


def draw_sequence(seed: int, stream: Stream, epoch: int, count: int) -> Words:
    """One word each for `count` things of an epoch: uint64 (count,), without padding."""
    positions = -(-count // _WORDS_PER_BLOCK)
    return draw_words(seed, stream, epoch, 0, positions, _WORDS_PER_BLOCK).reshape(-1)[:count]


def uniform(words: Words) -> NDArray[np.float64]:
    """Words as float64 in the open interval (0, 1): the middles of 2**52 equal cells, so neither 0 nor 1 occurs."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def integers(words: Words, high: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Words as int64 in [0, high), high < 2**32."""
    return np.floor(uniform(words) * high).astype(np.int64)


def permutation(words: Words) -> NDArray[np.int64]:
    """A uniform permutation of len(words) things: the stable argsort of their words, the same on any machine."""
    return np.argsort(words, kind="stable")
