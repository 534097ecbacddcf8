"""The blend kernels: `host` is compiled by Numba, `device` uses torch operations. DALI's is in `dali.stage`.

All compute products and sum as separate operations, as `mixing.reference` does. A fused multiply-add rounds only once, and which
elements a compiler fuses may depend on a row's place in the batch: member k of K could then differ from the same weight at K = 1.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from multimix_pipe.runtime.kernels import device
from multimix_pipe.runtime.kernels.layout import Layout
from multimix_pipe.runtime.tensors import MixTensors

__all__ = ["Layout", "blend", "host_kernel"]

logger = logging.getLogger(__name__)


def blend(images: Tensor, mix: MixTensors, out: Tensor, layout: Layout) -> Tensor:
    """Write the K members of each pair into `out` and return it, using the fastest kernel available.

    images: (B, ...) of any numeric dtype. out: (B, K, ...) contiguous, of any floating dtype. All tensors are on one device.
    Arithmetic is float32; only the result is rounded.
    """
    host = host_kernel() if images.device.type == "cpu" else None
    if host is not None and out.dtype in host.KINDS:
        host.blend(images if images.dtype == torch.uint8 else images.float(), mix, out, layout)
    else:
        device.blend(images.float(), mix, out, layout, images if images.dtype == torch.uint8 else None)
    return out


@cache
def host_kernel() -> ModuleType | None:
    """Return the module `kernels.host`, or None if Numba cannot be imported, which is logged once."""
    try:
        from multimix_pipe.runtime.kernels import host
    except (ImportError, SystemError, OSError) as error:  # the last two: Numba was built for another NumPy
        logger.warning(
            "mixing on the CPU with torch, which is several times slower than with Numba; Numba cannot be imported (%s). "
            "Install it with pip install 'multimix-pipe[fast]'",
            error,
        )
        return None
    return host
