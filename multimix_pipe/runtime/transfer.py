"""Host arrays on their way to a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array as a tensor on `device`; on CUDA the host waits for nothing, and the array may be changed at once."""
    values = torch.as_tensor(array)
    if device.type != "cuda":
        return values.to(device)
    # a copy from memory that is not pinned would wait for all that the device still has to do
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)
    return pinned.to(device, non_blocking=True)
