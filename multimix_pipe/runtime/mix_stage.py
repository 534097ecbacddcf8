"""The last step, the same for both backends: a batch of pixels becomes the images that are handed out."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.buffers import BufferPool
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.runtime.kernels.blend import MIXERS, blend
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.transfer import to_device


class MixStage(Protocol):
    """Makes the images that are handed out of a batch of pixels."""

    def pixels(self, rows: int) -> Tensor:
        """Memory for the pixels of `rows` rows, uint8 on the host."""
        ...

    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        """The images to hand out."""
        ...

    def close(self) -> None:
        """Free threads and memory."""
        ...


class HostMixStage:
    """On a CPU: normalises, mixes and rounds to the loader's type in one pass, into memory that is reused."""

    def __init__(self, context: LoaderContext) -> None:
        self._context = context
        self._normalize = Normalize.of(context.config.transform, context.config.channels_last)
        self._buffers = BufferPool()
        self._threads = ThreadPoolExecutor(min(MIXERS, context.config.num_threads), thread_name_prefix="multimix-mix")

    def pixels(self, rows: int) -> Tensor:
        """Memory for pixels to finish: uint8 (rows, C, H, W), or (rows, H, W, C) for channels_last."""
        return self._memory(self._normalize.shape(rows, *self._context.config.transform.height_width), torch.uint8)

    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        """Images to hand out: (B*K, C, H, W), or (B, C, H, W) where nothing is mixed.

        pixels: uint8, contiguous, cropped and mirrored, of the shape that `pixels(B)` has.
        """
        if self._context.mixes:
            partner, lam = torch.from_numpy(step.partner), torch.from_numpy(step.lam)
        else:  # a pair of an image with itself, at weight 1, is that image to the bit
            partner, lam = torch.arange(len(step)), torch.ones(len(step), 1)
        out = self._memory((*lam.shape, *pixels.shape[1:]), self._context.dtype)
        blend(pixels, partner, lam, out, normalize=self._normalize, threads=self._threads)
        return self._normalize.channels_first(out.flatten(0, 1))

    def close(self) -> None:
        """Stop its threads."""
        self._threads.shutdown(cancel_futures=True)

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self._buffers.take(int(np.prod(shape)) * dtype.itemsize)
        return torch.from_numpy(memory).view(dtype).view(shape)


class DeviceMixStage:
    """On an accelerator, with torch's operations on the consumer's stream: what is handed out is memory of torch's."""

    def __init__(self, context: LoaderContext) -> None:
        self._context = context
        self._normalize = Normalize.of(context.config.transform, context.config.channels_last)
        shape = (3,) if self._normalize.channels_last else (3, 1, 1)
        self._mean, self._scale = (
            torch.from_numpy(values).reshape(shape).to(context.device)
            for values in (self._normalize.mean, self._normalize.scale)
        )
        self._being_read: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def pixels(self, rows: int) -> Tensor:
        """As `HostMixStage.pixels`, to be copied to the device: on CUDA pinned, and reused by torch once copies are over."""
        shape = self._normalize.shape(rows, *self._context.config.transform.height_width)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._context.device.type == "cuda")

    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        """As `HostMixStage.finish`, of pixels on the host or the device; the host waits for nothing."""
        context, device = self._context, self._context.device
        on_device = pixels.to(device, non_blocking=pixels.is_pinned())
        images = torch.sub(on_device, self._mean).mul_(self._scale)
        self._keep_until_read(pixels)
        if context.mixes:
            out = torch.empty((*step.lam.shape, *images.shape[1:]), dtype=context.dtype, device=device)
            images = blend(images, to_device(step.partner, device), to_device(step.lam, device), out).flatten(0, 1)
        return self._normalize.channels_first(images.to(context.dtype))

    def close(self) -> None:
        """Let go of pixels, once they have been read."""
        while self._being_read:
            self._being_read.popleft()[0].synchronize()

    def _keep_until_read(self, pixels: Tensor) -> None:
        """Keep pixels that DALI has made: it uses memory anew in the order of its own stream, which waits for no consumer's."""
        if pixels.device.type != "cuda":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(pixels.device))
        self._being_read.append((event, pixels))
        while self._being_read and self._being_read[0][0].query():  # type: ignore[no-untyped-call]
            self._being_read.popleft()


def make_mix_stage(context: LoaderContext) -> MixStage:
    """Return the mix stage for the loader's device."""
    return HostMixStage(context) if context.device.type == "cpu" else DeviceMixStage(context)
