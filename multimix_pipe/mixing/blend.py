"""The fast kernels of mixup: agree with `mixup.mix_images` to the bit, on any device and for any K."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

MIXERS = 4
"""Threads that are of use: mixing on a CPU moves memory, and a few cores move all that there is."""

_SERIAL = 16384  # elements; torch does not wake its own threads for so few


def blend(
    images: Tensor, partner: Tensor, lam: Tensor, out: Tensor, threads: ThreadPoolExecutor | None = None
) -> Tensor:
    """Write lam[b, k] * images[b] + (1 - lam[b, k]) * images[partner[b]] into out[b, k], and return `out`.

    images (B, ...) float32, partner (B,) int64, lam (B, K) float32, out (B, K, ...) of any floating type: sums are float32, only
    the result is rounded to `out`'s type (of 16 bits: contiguous). All lie on one device. On a CPU the calling thread does it, or
    the threads of a pool, pair by pair.

    Products and sum are separate operations: a fused multiply-add rounds once, and which elements of a row a compiler fuses may
    depend on the row's place in the batch; so row k of K would differ from the same weight at K = 1.
    """
    if images.device.type == "cpu":
        pairs = _Pairs(images, partner, lam, out)
        for _ in (
            map(pairs.blend, range(len(images))) if threads is None else threads.map(pairs.blend, range(len(images)))
        ):
            pass
    else:
        weight = lam.reshape(*lam.shape, *[1] * (images.ndim - 1))
        own = images[:, None] * weight
        own += images[partner][:, None] * (1 - weight)
        out.copy_(own)
    return out


class _Pairs:
    """A batch on the CPU, one pair at a time: its K rows stay in the cache from the first product to the sum.

    In NumPy, which works in the calling thread: torch would split each product over threads of its own and wait for the slowest
    of them, which is long while all cores decode the next batch.
    """

    def __init__(self, images: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
        self._images = images.numpy()
        self._partner = partner.numpy()
        self._weight = lam.numpy().reshape(*lam.shape, *[1] * (images.ndim - 1))
        self._rest = np.float32(1) - self._weight
        self._out = out

    def blend(self, pair: int) -> None:
        """All K rows of a pair."""
        out = self._out[pair]
        rounds = out.dtype != torch.float32
        own = np.empty(out.shape, dtype=np.float32) if rounds else out.numpy()
        np.multiply(self._images[pair], self._weight[pair], out=own)
        own += self._images[self._partner[pair]] * self._rest[pair]
        if rounds:
            total, rounded = torch.from_numpy(own).view(-1), out.view(-1)
            for start in range(0, len(total), _SERIAL):
                rounded[start : start + _SERIAL] = total[start : start + _SERIAL]
