"""The blends, once each: on the host compiled by Numba (`host`), on a device in torch (`device`). DALI's is `dali.stage`.

All give what `mixing.reference` gives, to the bit. So products and sum are separate operations everywhere: a fused multiply-add
rounds once, and which elements of a row a compiler fuses may depend on the row's place in the batch; then row k of K would
differ from the same weight at K = 1.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

from torch import Tensor

from multimix_pipe.runtime.kernels import device
from multimix_pipe.runtime.kernels.layout import Layout
from multimix_pipe.runtime.tensors import MixTensors

__all__ = ["Layout", "blend", "host_kernel"]

logger = logging.getLogger(__name__)


def blend(images: Tensor, mix: MixTensors, out: Tensor, layout: Layout) -> Tensor:
    """Write the members of each pair into `out` and return it, by the fastest blend that there is for it.

    images (B, ...) float32, out (B, K, ...) contiguous and of any floating type, all on one device: sums are float32, only the
    result is rounded.
    """
    host = host_kernel() if images.device.type == "cpu" else None
    if host is not None and out.dtype in host.KINDS:
        host.blend(images, mix, out, layout)
    else:
        device.blend(images, mix, out, layout)
    return out


@cache
def host_kernel() -> ModuleType | None:
    """The module `kernels.host`, or None where Numba does not import, which is logged once."""
    try:
        from multimix_pipe.runtime.kernels import host
    except (ImportError, SystemError, OSError) as error:  # the latter two: a Numba that was built for another NumPy
        level = logging.INFO if isinstance(error, ModuleNotFoundError) else logging.WARNING
        logger.log(
            level,
            "mixing on the CPU in torch, several times slower: Numba does not import (%s). "
            "pip install 'multimix-pipe[fast]' installs it",
            error,
        )
        return None
    return host
