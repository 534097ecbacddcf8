"""The DALI backend with the Triton kernel behind its graph, as bench/gpu_rates_dali.py measures it: not shipped.

The kernel normalises, mixes and rounds the graph's uint8 pixels in one pass, where the shipped finisher takes several of torch's.
"""

from __future__ import annotations

import numpy as np
import torch
from mix_triton import mix_pixels
from multimix_pipe.runtime.transfer import to_device
from torch import Tensor

from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.loader import Loader
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.mix_stage import DeviceMixStage


def with_kernel(loader: Loader) -> Loader:
    """Give a loader of backend="dali" this finisher."""
    return Loader(loader.context, DaliExecutor(loader.context, KernelMixStage(loader.context)))


class KernelMixStage(DeviceMixStage):
    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        context, normalize = self._context, self._normalize
        if context.mixes:
            partner, lam = step.partner, step.lam
        else:  # an image with itself at weight 1 is that image, to the bit
            partner, lam = np.arange(len(step)), np.ones((len(step), 1), dtype=np.float32)
        out = torch.empty((*lam.shape, *pixels.shape[1:]), dtype=context.dtype, device=context.device)
        drawn = (to_device(partner, context.device), to_device(lam, context.device))
        mean, scale = self._mean.flatten(), self._scale.flatten()
        mix_pixels(pixels, mean, scale, *drawn, out, channels_last=normalize.channels_last)
        self._keep_until_read(pixels)
        return normalize.channels_first(out.flatten(0, 1))
