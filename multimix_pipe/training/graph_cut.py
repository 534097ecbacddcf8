"""Exact, nested graph cuts on grids: one mask for each of K ordered weights.

Member k shows x in the set Z_k of blocks that minimises

    E_k(Z) = sum_{i in Z} (u_i + p_k) + sum_{neighbours i, j} w_ij [exactly one of i, j is in Z]        w_ij >= 0

Only p_k depends on the member, and it does not decrease with k. Of several minimisers, Z_k is the smallest one, which is unique.
Then Z_1 contains Z_2, Z_2 contains Z_3, and so on (proof: docs/methods/puzzle.md), and all masks are given by one number per
block: in how many members it shows x. A binary search for that number takes ceil(log2(K + 1)) cuts of ever smaller graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

Float = NDArray[np.floating]
Ints = NDArray[np.int64]

MAX_SCALE = 2**20
"""Energies are rounded to multiples of 1 / MAX_SCALE, or coarser if they are large: `maximum_flow` takes 32-bit integers.
Rounding keeps the order of p, so that the masks still nest."""
MAX_FLOW = 2**30
"""Largest total capacity of the graphs that are solved in one call."""


def nested_cuts(unary: Float, prior: Float, down: Float, right: Float, low: Ints, high: Ints) -> Ints:
    """Return in how many of its K members each block shows x: int64 (B, n, m). Member k shows it there if k < that number.

    Args:
        unary: (B, n, m) u, the energy of showing x in a block; negative where x should be shown.
        prior: (B, K) p, non-decreasing along k.
        down: (B, n-1, m) w >= 0 between a block and the one below it.
        right: (B, n, m-1) w >= 0 between a block and the one to its right.
        low, high: (B,) bounds of the result, 0 <= low <= high <= K: members k < low show x everywhere, members k >= high nowhere.
    """
    pairs, k = prior.shape
    grid = unary.shape[1:]
    image = np.repeat(np.arange(pairs), grid[0] * grid[1])
    scale = _scales(unary, prior, down, right)
    cost_of_x, of_member, *weights = (_rounded(part, scale) for part in (unary, prior, down, right))
    block = np.arange(unary.size).reshape(pairs, *grid)
    first = np.concatenate([block[:, :-1].ravel(), block[:, :, :-1].ravel()])
    second = np.concatenate([block[:, 1:].ravel(), block[:, :, 1:].ravel()])
    weight = np.concatenate([part.ravel() for part in weights])
    lowest, highest = low[image], high[image]
    while (open_ := lowest < highest).any():
        middle = (lowest + highest) // 2
        cost = cost_of_x.ravel() + of_member[image, np.minimum(middle, k - 1)]
        # blocks with the same bounds are cut together; of a block with others it is known what it shows in the other's member
        order = np.sign(lowest[first] - lowest[second]) + np.sign(highest[first] - highest[second])
        # > 0: `first` shows x where `second` is asked, and `second` shows x' where `first` is
        pull = np.sign(order) * weight
        cost += (np.bincount(first, pull, len(cost)) - np.bincount(second, pull, len(cost))).astype(np.int64)
        inner = (order == 0) & open_[first]
        chosen = _minimal_cut(np.where(open_, cost, 0), np.where(inner, weight, 0), first, second, unary.shape)
        lowest, highest = np.where(chosen, middle + 1, lowest), np.where(open_ & ~chosen, middle, highest)
    return lowest.reshape(unary.shape)


def _scales(unary: Float, prior: Float, down: Float, right: Float) -> NDArray[np.float64]:
    """Return the power of two by which each pair's energies are multiplied before they are rounded, (B,)."""
    total = np.abs(unary).sum((1, 2)) + unary[0].size * np.abs(prior).max(1, initial=0) if len(unary) else np.zeros(0)
    total = total + 4 * (down.sum((1, 2)) + right.sum((1, 2)))
    scale: NDArray[np.float64] = np.exp2(np.floor(np.log2(MAX_FLOW / np.maximum(total, MAX_FLOW / MAX_SCALE))))
    return scale


def _rounded(energy: Float, scale: NDArray[np.float64]) -> Ints:
    return np.rint(energy * scale.reshape(-1, *[1] * (energy.ndim - 1))).astype(np.int64)


def _minimal_cut(cost: Ints, weight: Ints, first: Ints, second: Ints, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the smallest set of blocks that minimises the sum of `cost` over it plus the `weight` of the edges cut."""
    kernel = compiled_cut()
    pairs, height, width = shape
    if kernel is not None:
        # the edges downwards come first
        down, right = np.split(weight, [pairs * (height - 1) * width])
        chosen = np.zeros(shape, dtype=np.bool_)
        kernel.minimal_cuts(
            cost.reshape(shape), down.reshape(pairs, -1, width), right.reshape(pairs, height, -1), chosen
        )
        return chosen.ravel()
    chosen = np.zeros(len(cost), dtype=np.bool_)
    image, edge_image = np.arange(len(cost)) // (height * width), first // (height * width)
    for start, stop in _groups(np.bincount(image, np.abs(cost), pairs)):
        nodes = slice(start * height * width, stop * height * width)
        edges = (edge_image >= start) & (edge_image < stop) & (weight > 0)
        chosen[nodes] = _source_side(
            cost[nodes], first[edges] - nodes.start, second[edges] - nodes.start, weight[edges]
        )
    return chosen


@cache
def compiled_cut() -> ModuleType | None:
    """Return the module `compiled_cut`, or None without Numba; SciPy's maximum flow is then used."""
    try:
        from multimix_pipe.training import compiled_cut
    except (ImportError, SystemError, OSError):  # the last two: Numba was built for another NumPy
        return None
    return compiled_cut


def _groups(totals: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Split images into runs whose capacities add up to at most MAX_FLOW, so that no flow overflows 32 bits."""
    start, total = 0, 0.0
    for stop, own in enumerate(totals):
        if total + own > MAX_FLOW and stop > start:
            yield start, stop
            start, total = stop, 0.0
        total += own
    if start < len(totals):
        yield start, len(totals)


def _source_side(cost: Ints, first: Ints, second: Ints, weight: Ints) -> NDArray[np.bool_]:
    """Return which nodes are reachable from the source of the residual graph: the smallest minimum cut."""
    count = len(cost)
    source, sink = count, count + 1
    wants, shuns = np.flatnonzero(cost < 0), np.flatnonzero(cost > 0)
    rows = np.concatenate([first, second, np.full(len(wants), source), shuns])
    columns = np.concatenate([second, first, wants, np.full(len(shuns), sink)])
    capacity = np.concatenate([weight, weight, -cost[wants], cost[shuns]])
    graph = csr_matrix((capacity.astype(np.int32), (rows, columns)), shape=(count + 2, count + 2))
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = np.zeros(count + 2, dtype=np.bool_)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    return reached[:count]
