"""Words are a function of (seed, stream, epoch, position, attempt, member), uniform, and never shared between coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from multimix_pipe.plan.seeding import Stream, draw_sequence, draw_words, integers, permutation, uniform

LARGEST = np.array([2**64 - 1], dtype=np.uint64)
SMALLEST = np.array([0], dtype=np.uint64)


@pytest.mark.parametrize("per_position", [1, 4, 6, 23])
def test_words_of_a_position_do_not_depend_on_the_range_they_are_drawn_in(per_position: int) -> None:
    whole = draw_words(7, Stream.CROP, 3, 0, 40, per_position)
    for start, count in [(0, 1), (1, 1), (13, 20), (39, 1)]:
        assert np.array_equal(draw_words(7, Stream.CROP, 3, start, count, per_position), whole[start : start + count])


def test_every_coordinate_selects_other_words() -> None:
    top = 2**63
    coordinates = [(seed, 2**63 + 1) for seed in (0, 1, top - 1, top, top + 1, 2**64 - 2, 2**64 - 1)]
    coordinates += [(5, epoch) for epoch in (0, 1, top - 1, top, 2**64 - 1)]
    sets = [draw_words(seed, stream, epoch, 9, 8, 4) for seed, epoch in coordinates for stream in Stream]
    sets += [draw_words(5, Stream.CROP, 0, 9, 8, 4, attempt=attempt) for attempt in (1, 2)]
    sets += [draw_words(5, Stream.CROP, 0, 9, 8, 4, attempt=attempt, member=1) for attempt in (0, 1)]
    words = np.concatenate([words.reshape(-1) for words in sets])
    assert len(np.unique(words)) == len(words)


def test_the_largest_position_is_reached() -> None:
    far = 2**50
    assert np.array_equal(draw_words(1, Stream.LAM, 0, far, 2, 6)[1:], draw_words(1, Stream.LAM, 0, far + 1, 1, 6))


def test_a_sequence_is_the_same_whatever_its_length() -> None:
    assert np.array_equal(draw_sequence(3, Stream.SAMPLE, 1, 5), draw_sequence(3, Stream.SAMPLE, 1, 1001)[:5])


def test_uniforms_are_inside_the_open_interval_and_uniform() -> None:
    assert 0.0 < uniform(SMALLEST)[0] < uniform(LARGEST)[0] < 1.0
    u = uniform(draw_sequence(0, Stream.SAMPLE, 0, 50_000))
    assert stats.kstest(u, "uniform").pvalue > 0.01


@pytest.mark.parametrize("high", [1, 2, 3, 5, 1000, 2**16 + 1, 2**31 - 1, 2**32 - 1])
def test_integers_cover_the_range_and_never_reach_its_end(high: int) -> None:
    assert integers(SMALLEST, high)[0] == 0
    assert integers(LARGEST, high)[0] == high - 1


def test_integers_are_uniform() -> None:
    counts = np.bincount(integers(draw_sequence(0, Stream.SAMPLE, 0, 70_000), 7), minlength=7)
    assert stats.chisquare(counts).pvalue > 0.01


def test_a_permutation_is_the_stable_argsort_of_its_words() -> None:
    words = np.array([5, 1, 5, 2**64 - 1, 0, 1], dtype=np.uint64)
    assert permutation(words).tolist() == [4, 1, 5, 0, 2, 3]


def test_permutations_are_uniform() -> None:
    words = draw_words(0, Stream.SAMPLE, 0, 0, 12_000, 4)
    codes = [int(permutation(row) @ [64, 16, 4, 1]) for row in words]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.01
