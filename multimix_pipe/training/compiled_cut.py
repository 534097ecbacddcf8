"""Minimum cuts of grids, compiled by Numba: Dinic's algorithm without building a graph. Importing this imports Numba."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.shards.compiled import jit


@jit
def minimal_cuts(
    cost: NDArray[np.int64], down: NDArray[np.int64], right: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> None:
    """Write into `chosen` the smallest set of nodes that minimises the sum of `cost` over it plus the weights of the edges cut.

    Every array is (B, n, m), for B grids; down and right are the weights >= 0 of the edges to the next row and column.
    """
    pairs, height, width = cost.shape
    size = height * width
    step = np.array([1, -1, width, -width])  # to the right, left, below, above; d ^ 1 is the way back
    room = np.empty((4, size), np.int64)  # residual capacities
    level, queue, edge, path = np.empty((4, size), np.int64)
    for pair in range(pairs):
        left = -cost[pair].copy().reshape(size)  # > 0: what a source still has; < 0: what a sink still takes
        room[:] = 0
        for row in range(height):
            for column in range(width):
                node = row * width + column
                if column + 1 < width:
                    room[0, node] = room[1, node + 1] = right[pair, row, column]
                if row + 1 < height:
                    room[2, node] = room[3, node + width] = down[pair, row, column]
        while _levels(left, room, step, level, queue):
            edge[:] = 0
            for source in range(size):
                while left[source] > 0 and _augment(source, left, room, step, level, edge, path):
                    pass
        for node in range(size):  # what can still be reached from a source
            chosen[pair, node // width, node % width] = level[node] >= 0


@jit
def _levels(
    left: NDArray[np.int64],
    room: NDArray[np.int64],
    step: NDArray[np.int64],
    level: NDArray[np.int64],
    queue: NDArray[np.int64],
) -> bool:
    """Number the nodes by their distance from a source, -1 if there is no way; return whether a sink can be reached."""
    level[:] = -1
    end = 0
    for node in range(len(left)):
        if left[node] > 0:
            level[node] = 0
            queue[end] = node
            end += 1
    start, found = 0, False
    while start < end:
        node = queue[start]
        start += 1
        found |= left[node] < 0
        for d in range(4):
            if room[d, node] > 0 and level[node + step[d]] < 0:
                level[node + step[d]] = level[node] + 1
                queue[end] = node + step[d]
                end += 1
    return found


@jit
def _augment(
    source: int,
    left: NDArray[np.int64],
    room: NDArray[np.int64],
    step: NDArray[np.int64],
    level: NDArray[np.int64],
    edge: NDArray[np.int64],
    path: NDArray[np.int64],
) -> bool:
    """Send flow from `source` along one path of growing level to a sink; return False if there is none left."""
    node, depth = source, 0
    while left[node] >= 0:
        while edge[node] < 4:
            d = edge[node]
            if room[d, node] > 0 and level[node + step[d]] == level[node] + 1:
                break
            edge[node] += 1
        if edge[node] == 4:
            if depth == 0:
                return False
            depth -= 1
            node = path[depth]
            edge[node] += 1
        else:
            path[depth] = node
            depth += 1
            node += step[edge[node]]
    sent = min(left[source], -left[node])
    for place in range(depth):
        sent = min(sent, room[edge[path[place]], path[place]])
    for place in range(depth):
        at = path[place]
        d = edge[at]
        room[d, at] -= sent
        room[d ^ 1, at + step[d]] += sent
    left[source] -= sent
    left[node] += sent
    return True
