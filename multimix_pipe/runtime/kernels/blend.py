"""The fast kernels of mixup: agree with `mixup.mix_images` to the bit, on any device and for any K.

Products and sum are separate operations everywhere: a fused multiply-add rounds once, and which elements of a row a compiler
fuses may depend on the row's place in the batch; so row k of K would differ from the same weight at K = 1.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.runtime.kernels.normalize import Normalize

logger = logging.getLogger(__name__)

MIXERS = 4
"""Threads that are of use: mixing on a CPU moves memory, and a few cores move all that there is."""

_DEVICE_ELEMENTS = 2**24  # of a product: 64 MiB

_CHUNK = 12288  # elements that NumPy mixes at a time, a multiple of 3: K rows of them stay in an L2 cache


def blend(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    out: Tensor,
    *,
    normalize: Normalize | None = None,
    threads: ThreadPoolExecutor | None = None,
) -> Tensor:
    """Write lam[b, k] * images[b] + (1 - lam[b, k]) * images[partner[b]] into out[b, k], and return `out`.

    images (B, ...) float32, or on a CPU also uint8 pixels that `normalize` normalises; partner (B,) int64, lam (B, K) float32,
    out (B, K, ...) of any floating type: sums are float32, only the result is rounded to `out`'s type. All lie on
    one device. On a CPU the calling thread does it, or the threads of a pool.
    """
    if images.device.type == "cpu":
        _blend_on_cpu(images, partner, lam, out, normalize, threads)
    else:
        _blend_on_device(images, partner, lam, out)
    return out


@cache
def fused_kernel() -> ModuleType | None:
    """The module `mixing.fused`; None where Numba does not import, which is said once."""
    try:
        from multimix_pipe.runtime.kernels import fused
    except (ImportError, SystemError, OSError) as error:  # the latter two: a Numba that was built for another NumPy
        level = logging.INFO if isinstance(error, ModuleNotFoundError) else logging.WARNING
        logger.log(
            level,
            "mixing on the CPU in NumPy, at about half the speed: Numba does not import (%s). "
            "pip install 'multimix-pipe[fast]' installs it",
            error,
        )
        return None
    return fused


def _blend_on_cpu(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    out: Tensor,
    normalize: Normalize | None,
    threads: ThreadPoolExecutor | None,
) -> None:
    if not out.is_contiguous():
        _blend_on_cpu(images, partner, lam, in_order := torch.empty(out.shape, dtype=out.dtype), normalize, threads)
        out.copy_(in_order)
        return
    if not out.numel():
        return
    pairs, k = lam.shape
    if normalize is None:
        normalize = Normalize(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32), channels_last=False)
    planes = 1 if normalize.channels_last else len(normalize.mean)
    source = images.contiguous().view(pairs, planes, -1).numpy()
    numbers, weights = partner.contiguous().numpy(), lam.contiguous().numpy()
    fused = fused_kernel()
    if fused is not None and out.dtype in fused.KINDS:
        means, scales = normalize.per_plane(fused.TILE)
        kind = fused.KINDS[out.dtype]
        target = out.view(pairs, k, planes, -1).view(torch.uint8).numpy()

        def mix(first: int, past: int) -> None:
            fused.mix_pairs(source, numbers, weights, means, scales, kind, target, first, past)
    else:
        means, scales = normalize.per_plane(_CHUNK)
        rows = out.view(pairs, k, planes, -1)

        def mix(first: int, past: int) -> None:
            for pair in range(first, past):
                _mix_pair(source[pair], source[numbers[pair]], weights[pair], means, scales, rows[pair])

    if threads is None:
        mix(0, pairs)
        return
    step = -(-pairs // (2 * MIXERS))
    starts = range(0, pairs, step)
    for _ in threads.map(lambda start: mix(start, min(start + step, pairs)), starts):
        pass


def _blend_on_device(images: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
    """In torch's operations, some pairs at a time: the products are kept in less memory, of which caches hold more."""
    weight = lam.reshape(*lam.shape, *[1] * (images.ndim - 1))
    rest = 1 - weight
    pairs = max(1, _DEVICE_ELEMENTS // max(1, out[:1].numel()))
    for first in range(0, len(images), pairs):
        part = slice(first, first + pairs)
        target = out[part] if out.dtype == torch.float32 else None
        mixed = torch.mul(images[part, None], weight[part], out=target)
        mixed += images[partner[part]][:, None] * rest[part]
        if target is None:
            out[part] = mixed


def _mix_pair(
    own: NDArray[np.generic],
    other: NDArray[np.generic],
    lam: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: Tensor,
) -> None:
    """The K rows of one pair in NumPy. own, other (P, N); mean, scale (P, _CHUNK); out (K, P, N)."""
    weight = lam[:, None]
    rest = np.float32(1) - weight
    planes, elements = own.shape
    for plane in range(planes):
        for start in range(0, elements, _CHUNK):
            part = slice(start, min(start + _CHUNK, elements))
            n = part.stop - part.start
            x, y = (
                (image[plane, part].astype(np.float32) - mean[plane, :n]) * scale[plane, :n] for image in (own, other)
            )
            mixed = weight * x
            mixed += rest * y
            for row, result in zip(out[:, plane, part], mixed, strict=True):
                row.copy_(torch.from_numpy(result))  # so few elements that torch does not wake its own threads
