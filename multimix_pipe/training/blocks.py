"""The geometry of PuzzleMix: grids of n x n blocks, what lies in them, and what differs across their borders."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.mixing.method import Size


def block_of(side: int, n: int) -> NDArray[np.int64]:
    """Return the block, 0 .. n-1, of each of `side` pixels. Blocks differ by at most one pixel."""
    return np.arange(side) * n // side


def share_of_pixels(shown: NDArray[np.int64], k: int, size: Size) -> NDArray[np.float32]:
    """Return the share of the pixels that show x, float32 (B, K); blocks may differ in size."""
    n = shown.shape[1]
    rows, columns = (np.bincount(block_of(side, n), minlength=n) for side in size)
    pixels = ((np.arange(k)[:, None, None] < shown[:, None]) * (rows[:, None] * columns)).sum((2, 3))
    share: NDArray[np.float32] = (pixels / (size[0] * size[1])).astype(np.float32)
    return share


def sum_over_blocks(pixels: Tensor, n: int) -> Tensor:
    """Sum pixels (B, H, W) over blocks: (B, n, n)."""
    rows, columns = (_membership(side, n, pixels) for side in pixels.shape[1:])
    return rows.T @ pixels @ columns


def _membership(side: int, n: int, like: Tensor) -> Tensor:
    """Return the (side, n) matrix that is 1 where a pixel belongs to a block."""
    return F.one_hot(torch.from_numpy(block_of(side, n)), n).to(like)


def border_differences(images: Tensor, partner: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return how much pixels differ across the borders of blocks, (2, 2, B, n-1, n) downwards and (2, 2, B, n, n-1) to the right.

    Entry [a, b] is the mean absolute difference where the block before the border shows x' (a = 0) or x (a = 1) and the one
    after it x' (b = 0) or x (b = 1).
    """
    return _down(images, partner, n), _down(images.transpose(2, 3), partner, n).transpose(3, 4)


def _down(images: Tensor, partner: Tensor, n: int) -> Tensor:
    height, width = images.shape[2:]
    first = torch.tensor(np.searchsorted(block_of(height, n), np.arange(1, n)), device=images.device)
    above, below = images[:, :, first - 1], images[:, :, first]  # (B, C, n-1, W)
    members = _membership(width, n, images)
    members = members / members.sum(0)

    def difference(before: Tensor, after: Tensor) -> Tensor:
        return (before - after).abs().mean(1) @ members

    same = difference(above, below)
    mixed = [difference(above[partner], below), difference(above, below[partner])]
    return torch.stack([torch.stack([same[partner], mixed[0]]), torch.stack([mixed[1], same])])


def unary_parts(phi: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what phi (2, 2, ...) adds to the cost of showing x before the border, and after it.

    phi[a, b] = const + before * a + after * b + cut * [a != b], exactly.
    """
    return (phi[1, 0] - phi[0, 0] + phi[1, 1] - phi[0, 1]) / 2, (phi[0, 1] - phi[0, 0] + phi[1, 1] - phi[1, 0]) / 2


def cut_part(phi: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what phi (2, 2, ...) adds where x and x' meet at the border; see `unary_parts`."""
    cut: NDArray[np.float64] = (phi[1, 0] + phi[0, 1] - phi[0, 0] - phi[1, 1]) / 2
    return cut


def padding(axis: int, before: int) -> list[tuple[int, int]]:
    """Return np.pad's argument that aligns the blocks before a border (before=0), or after it (1), with all blocks."""
    return [(before, 1 - before) if place == axis else (0, 0) for place in range(3)]


def squared_distances(n: int) -> NDArray[np.float64]:
    """Return the squared distances between the blocks of a grid, (n*n, n*n), as a fraction of its side's."""
    place = np.stack(np.divmod(np.arange(n * n), n), axis=1)
    squared: NDArray[np.float64] = ((place[:, None] - place) ** 2).sum(2) / (n - 1) ** 2
    return squared
