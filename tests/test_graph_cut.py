"""Promises of nested_cuts: each mask is the smallest exact minimum of its energy, and the masks of a pair nest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from multimix_pipe.training import graph_cut
from multimix_pipe.training.graph_cut import MAX_SCALE, nested_cuts


@pytest.fixture(autouse=True, params=["scipy", "compiled"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with SciPy's maximum flow, and with the compiled kernel where Numba is installed."""
    if request.param == "scipy":
        monkeypatch.setattr(graph_cut, "compiled_cut", lambda: None)
    elif graph_cut.compiled_cut() is None:
        pytest.skip("needs Numba")


def problem(pairs: int, k: int, n: int = 4, m: int | None = None, seed: int = 0, border: float = 0.02):
    """Return unary, prior, down and right terms of the sizes that PuzzleMix has, as multiples of 2**-20."""
    m = m or n
    draw = np.random.default_rng(seed)
    unary = draw.dirichlet(np.ones(n * m), pairs) - draw.dirichlet(np.ones(n * m), pairs)
    lam = -np.sort(-draw.uniform(size=(pairs, k)), axis=1)
    prior = 0.2 / (n * m) * np.log((1 - lam) / lam)
    down, right = draw.exponential(border, (pairs, n - 1, m)), draw.exponential(border, (pairs, n, m - 1))
    terms = (unary.reshape(pairs, n, m), prior, down, right)
    return [np.rint(term * MAX_SCALE) / MAX_SCALE for term in terms]


def cuts(terms, low=None, high=None):
    pairs, k = terms[1].shape
    low = np.zeros(pairs, dtype=np.int64) if low is None else low
    return nested_cuts(*terms, low, np.full(pairs, k) if high is None else high)


def energies(z, unary, prior, down, right):
    """Return the energy of masks z (..., n, m) of one pair, for one member."""
    cut = (np.abs(np.diff(z, axis=-2)) * down).sum((-2, -1)) + (np.abs(np.diff(z, axis=-1)) * right).sum((-2, -1))
    return ((unary + prior) * z).sum((-2, -1)) + cut


@pytest.mark.parametrize("border", [0.0, 0.005, 0.02, 0.2])
def test_each_mask_is_the_smallest_minimum_that_exhaustive_search_finds(border: float) -> None:
    every = np.array(list(itertools.product((0, 1), repeat=16)), dtype=np.int8).reshape(-1, 4, 4)
    unary, prior, down, right = terms = problem(6, 5, border=border)
    shown = cuts(terms)
    for pair, k in itertools.product(range(6), range(5)):
        energy = energies(every, unary[pair], prior[pair, k], down[pair], right[pair])
        best = every[np.flatnonzero(energy <= energy.min() + 1e-9)]
        smallest = best[best.sum((1, 2)).argmin()]
        assert (smallest <= best).all()  # the smallest one lies in all the others
        assert np.array_equal(k < shown[pair], smallest)


def test_a_tie_goes_to_the_smallest_mask() -> None:
    flat = [np.zeros((1, 4, 4)), np.zeros((1, 3)), np.ones((1, 3, 4)), np.ones((1, 4, 3))]
    assert (cuts(flat) == 0).all()


@pytest.mark.parametrize("k", [1, 2, 5, 7])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (8, 8), (16, 16), (3, 5)])
def test_k_masks_at_once_are_k_cuts_of_their_own(k: int, n: int, m: int) -> None:
    unary, prior, down, right = terms = problem(7, k, n, m, seed=k)
    shown = cuts(terms)
    for member in range(k):
        alone = cuts([unary, prior[:, member : member + 1], down, right])
        assert np.array_equal(member < shown, alone == 1)
    assert shown.shape == (7, n, m)


def test_a_pair_does_not_depend_on_the_others_of_its_batch() -> None:
    terms = problem(40, 5, 8)
    whole = cuts(terms)
    for pair in range(0, 40, 7):
        assert np.array_equal(whole[pair], cuts([term[pair : pair + 1] for term in terms])[0])


def test_large_energies_are_cut_as_exactly_as_small_ones() -> None:
    terms = problem(3, 5, 8)
    large = [term * 2.0**16 for term in terms]
    assert np.array_equal(cuts(large), cuts(terms))
    far_larger = cuts([term * 1e30 for term in terms])
    assert far_larger.min() >= 0
    assert far_larger.max() <= 5


def test_bounds_fix_members_that_show_one_image_alone() -> None:
    terms = problem(4, 5, 8)
    free = cuts(terms)
    low, high = np.array([0, 1, 2, 5]), np.array([0, 4, 5, 5])
    bounded = cuts(terms, low, high)
    assert np.array_equal(bounded, free.clip(low[:, None, None], high[:, None, None]))


def test_both_solvers_choose_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, border in itertools.product(range(5), (0.0, 0.002, 0.01, 0.1)):
        terms = problem(16, 5, 12, 9, seed, border)
        found = cuts(terms)
        with monkeypatch.context() as patched:
            patched.setattr(graph_cut, "compiled_cut", lambda: None)
            assert np.array_equal(found, cuts(terms))


def test_an_empty_batch_has_no_masks() -> None:
    assert cuts(problem(0, 3)).shape == (0, 4, 4)
