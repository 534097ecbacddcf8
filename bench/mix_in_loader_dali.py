"""The DALI backend with the Triton kernel behind its graph, as bench/gpu_rates_dali.py measures it: not shipped.

The kernel normalises, mixes and rounds the graph's uint8 pixels in one pass, where the shipped finisher takes several of torch's.
"""

from __future__ import annotations

import numpy as np
import torch
from mix_triton import mix_pixels
from torch import Tensor

from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.finishing import DeviceFinisher
from multimix_pipe.loader import Loader
from multimix_pipe.plan import StepPlan
from multimix_pipe.transfer import to_device


def with_kernel(loader: Loader) -> Loader:
    """Give a loader of backend="dali" this finisher."""
    loader._executor = DaliExecutor(loader._job)
    loader._executor._finisher = KernelFinisher(loader._job)
    return loader


class KernelFinisher(DeviceFinisher):
    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        job, normalize = self._job, self._normalize
        if job.mixes:
            partner, lam = step.partner, step.lam
        else:  # an image with itself at weight 1 is that image, to the bit
            partner, lam = np.arange(len(step)), np.ones((len(step), 1), dtype=np.float32)
        out = torch.empty((*lam.shape, *pixels.shape[1:]), dtype=job.dtype, device=job.device)
        drawn = (to_device(partner, job.device), to_device(lam, job.device))
        mean, scale = self._mean.flatten(), self._scale.flatten()
        mix_pixels(pixels, mean, scale, *drawn, out, channels_last=normalize.channels_last)
        self._keep_until_read(pixels)
        return normalize.channels_first(out.flatten(0, 1))
