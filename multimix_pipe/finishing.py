"""The last step on a CPU, the same for both backends: a batch of pixels becomes the images that are handed out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from multimix_pipe.buffers import BufferPool
from multimix_pipe.execution import Job
from multimix_pipe.mixing.blend import MIXERS, blend
from multimix_pipe.mixing.normalize import Normalize
from multimix_pipe.plan import StepPlan


class Finisher:
    """Normalises, mixes and rounds to the loader's type, in one pass and into memory that is reused. Has threads of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._normalize = Normalize.of(job.config.transform, job.config.channels_last)
        self._buffers = BufferPool()
        self._threads = ThreadPoolExecutor(min(MIXERS, job.config.num_threads), thread_name_prefix="multimix-mix")

    def pixels(self, rows: int) -> Tensor:
        """Memory for pixels to finish: uint8 (rows, C, H, W), or (rows, H, W, C) for channels_last."""
        height, width = self._job.config.transform.height_width
        shape = (rows, height, width, 3) if self._normalize.channels_last else (rows, 3, height, width)
        return self._memory(shape, torch.uint8)

    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        """Images to hand out: (B*K, C, H, W), or (B, C, H, W) where nothing is mixed.

        pixels: uint8, contiguous, cropped and mirrored, of the shape that `pixels(B)` has.
        """
        if self._job.mixes:
            partner, lam = torch.from_numpy(step.partner), torch.from_numpy(step.lam)
        else:  # a pair of an image with itself, at weight 1, is that image to the bit
            partner, lam = torch.arange(len(step)), torch.ones(len(step), 1)
        out = self._memory((*lam.shape, *pixels.shape[1:]), self._job.dtype)
        blend(pixels, partner, lam, out, normalize=self._normalize, threads=self._threads)
        images = out.flatten(0, 1)
        return images.permute(0, 3, 1, 2) if self._normalize.channels_last else images

    def close(self) -> None:
        """Stop its threads."""
        self._threads.shutdown(cancel_futures=True)

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self._buffers.take(int(np.prod(shape)) * dtype.itemsize)
        return torch.from_numpy(memory).view(dtype).view(shape)
