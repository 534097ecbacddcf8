"""The mix stage, which turns a batch of uint8 pixels into the images of the returned batch, for both backends."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.augment.host import Pixels
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.buffers import BufferPool
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.kernels import device, host_kernel
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.tensors import MixTensors, StepTensors


class MixStage(Protocol):
    """Normalises and mixes a batch of pixels, and rounds it to the loader's dtype."""

    def gather(self, images: Sequence[Pixels], flip: NDArray[np.bool_]) -> Tensor:
        """Copy B images, or the B*K crops of crops="each", mirrored where `flip` is set, into one batch on the host.

        images: contiguous uint8 (H, W, 3). flip: (B,) or (B, K). Returns uint8 (B, C, H, W), or (B, H, W, C) if channels_last.
        """
        ...

    def finish(self, step: StepPlan, pixels: Tensor) -> ExecutedStep:
        """Return the executed step for `pixels`: contiguous, in the shape that `gather` returns, on the host or the device."""
        ...

    def close(self) -> None:
        """Free threads and memory."""
        ...


class HostMixStage:
    """The mix stage for a CPU with Numba: one pass over memory, into reused buffers."""

    def __init__(self, context: LoaderContext, parallel: bool = False) -> None:
        """With `parallel`, several threads share the rows of a batch; otherwise the calling thread does all the work."""
        kernel = host_kernel()
        assert kernel is not None, "Numba is missing: use make_mix_stage"
        self._kernel = kernel
        self._context = context
        self._normalize = Normalize.of(context.config.transform, context.config.channels_last)
        self._buffers = BufferPool()
        threads = min(kernel.MIXERS, context.num_threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="multimix-mix") if parallel else None

    def gather(self, images: Sequence[Pixels], flip: NDArray[np.bool_]) -> Tensor:
        """See `MixStage.gather`."""
        shape = self._normalize.shape(len(images), *self._context.config.transform.height_width)
        pixels = self._memory(shape, torch.uint8)
        self._kernel.copy_rows(images, flip.reshape(-1), pixels, self._normalize.channels_last, self._threads)
        return pixels

    def finish(self, step: StepPlan, pixels: Tensor) -> ExecutedStep:
        """See `MixStage.finish`."""
        tensors = self._context.tensors(step)
        mix = _mix_of_pixels(step, tensors)
        shape = pixels.shape[:1] if mix is None else mix.lam.shape
        out = self._memory((*shape, *pixels.shape[1:]), self._context.dtype)
        layout = self._normalize.layout(pixels.shape)
        self._kernel.blend(pixels, mix, out, layout, self._normalize, self._threads)
        images = out if mix is None else out.flatten(0, 1)
        return ExecutedStep(step, self._normalize.channels_first(images), tensors)

    def close(self) -> None:
        """Stop the threads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self._buffers.take(int(np.prod(shape)) * dtype.itemsize)
        return torch.from_numpy(memory).view(dtype).view(shape)


class DeviceMixStage:
    """The mix stage for any device, in torch operations on the consumer's stream. Results are in memory that torch owns."""

    def __init__(self, context: LoaderContext) -> None:
        self._context = context
        self._normalize = Normalize.of(context.config.transform, context.config.channels_last)
        shape = (3,) if self._normalize.channels_last else (3, 1, 1)
        self._mean, self._scale = (
            torch.from_numpy(values).reshape(shape).to(context.device)
            for values in (self._normalize.mean, self._normalize.scale)
        )

    def gather(self, images: Sequence[Pixels], flip: NDArray[np.bool_]) -> Tensor:
        """See `MixStage.gather`. On CUDA the memory is pinned, and torch reuses it once copies from it are done."""
        shape = self._normalize.shape(len(images), *self._context.config.transform.height_width)
        pinned = self._context.device.type == "cuda"
        pixels = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        channels_last, kernel = self._normalize.channels_last, host_kernel()
        flip = flip.reshape(-1)
        if kernel is not None:
            kernel.copy_rows(images, flip, pixels, channels_last)
            return pixels
        for row, image, mirrored in zip(pixels.numpy(), images, flip.tolist(), strict=True):
            pixel_rows = image[:, ::-1] if mirrored else image
            row[...] = pixel_rows if channels_last else pixel_rows.transpose(2, 0, 1)
        return pixels

    def finish(self, step: StepPlan, pixels: Tensor) -> ExecutedStep:
        """See `MixStage.finish`. The host does not wait for the device."""
        context = self._context
        tensors = context.tensors(step)
        on_device = pixels.to(context.device, non_blocking=pixels.is_pinned())
        images = self._normalized(on_device)
        mix = _mix_of_pixels(step, tensors)
        if mix is not None:
            out = torch.empty((*mix.lam.shape, *images.shape[1:]), dtype=context.dtype, device=context.device)
            device.blend(images, mix, out, self._normalize.layout(images.shape), on_device, self._normalized)
            images = out.flatten(0, 1)
        return ExecutedStep(step, self._normalize.channels_first(images.to(context.dtype)), tensors)

    def _normalized(self, pixels: Tensor) -> Tensor:
        return torch.sub(pixels, self._mean).mul_(self._scale)

    def close(self) -> None:
        """Do nothing."""


def _mix_of_pixels(step: StepPlan, tensors: StepTensors) -> MixTensors | None:
    """Return how a step's pixels are mixed: B images, or the B*K crops of crops="each". None: they are handed out as they are."""
    if tensors.mix is None or step.mix.is_identity:
        return None
    if not step.crops_each:
        return tensors.mix
    return None if (step.lam == 1).all() else tensors.mix.of_crops()  # None: batch augmentation without mixing


def make_mix_stage(context: LoaderContext, parallel: bool = False) -> MixStage:
    """Return the mix stage for the loader's device; `parallel`: see `HostMixStage`."""
    if context.device.type == "cpu" and host_kernel() is not None:
        return HostMixStage(context, parallel)
    return DeviceMixStage(context)
