"""Random words keyed by coordinates (seed, stream, epoch, position), never by history.

Philox is a counter-based generator (Salmon et al. 2011): word w of position p is a function of the key and the counter alone.
Any range of positions is therefore one vectorised call, and resuming mid-epoch replays nothing. Only raw words are used,
because NumPy guarantees the bit stream of a bit generator but not the output of the `Generator` methods.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

WORDS_PER_BLOCK = 4  # Philox4x64 gives four words per counter value


class Stream(IntEnum):
    """The purpose of a draw. Streams of one seed never share a word; their values are part of the format and must not change."""

    SAMPLE = 1
    SHARD = 2
    CROP = 3
    PARTNER = 4
    LAM = 5
    REPLACEMENT = 6
    FIELD = 7
    METHOD = 8
    SHIFT = 9
    LAYER = 16
    BLOCKS = 17


def draw_words(
    seed: int,
    stream: Stream,
    epoch: int,
    start: int,
    count: int,
    per_position: int,
    *,
    attempt: int = 0,
    member: int = 0,
) -> Words:
    """Draw `per_position` words for each of the positions [start, start + count): uint64 (count, per_position).

    `attempt` and `member` select independent sets of words for the same positions. A position's words stay the same as long as
    `per_position` needs the same number of blocks of four words.
    """
    blocks = -(-per_position // WORDS_PER_BLOCK)
    # explicit dtype: NumPy converts a list that holds an int >= 2**63 to float64, and distinct seeds would become equal
    key = np.array([seed, int(stream)], dtype=np.uint64)
    counter = np.array([start * blocks, attempt, epoch, member], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    words = generator.random_raw(count * blocks * WORDS_PER_BLOCK)
    return words.reshape(count, blocks * WORDS_PER_BLOCK)[:, :per_position]


def draw_sequence(seed: int, stream: Stream, epoch: int, count: int, *, start: int = 0) -> Words:
    """Draw one word for each of the items [start, start + count) of an epoch: uint64 (count,)."""
    first, skipped = divmod(start, WORDS_PER_BLOCK)
    blocks = -(-(skipped + count) // WORDS_PER_BLOCK)
    return draw_words(seed, stream, epoch, first, blocks, WORDS_PER_BLOCK).reshape(-1)[skipped : skipped + count]


def uniform(words: Words) -> NDArray[np.float64]:
    """Convert words to float64 in the open interval (0, 1): midpoints of 2**52 equal cells, so neither 0 nor 1 occurs."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def integers(words: Words, high: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Convert words to int64 in [0, high), for high < 2**32."""
    return np.floor(uniform(words) * high).astype(np.int64)


def permutation(words: Words) -> NDArray[np.int64]:
    """Return a uniform permutation of 0 .. len(words) - 1: the stable argsort of the words, the same on every machine."""
    return np.argsort(words, kind="stable")
