"""Executes step plans with threads and torch: decode and crop on the host, normalise and mix on the device.

A step is cut into tasks of a few rows. Each row is read, decoded, cropped and mirrored into the step's uint8 batch. On a CPU
more threads normalise and mix, so that batches are ready before they are asked for. On an accelerator the uint8 batch lies in
pinned memory, crosses when it is asked for, and the device does the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.buffers import BufferPool
from multimix_pipe.config import TrainTransform
from multimix_pipe.execution import Job, Replacements
from multimix_pipe.mixing.blend import MIXERS, blend
from multimix_pipe.native import decode
from multimix_pipe.native.decode import UndecodableError
from multimix_pipe.plan import StepPlan


@dataclass(frozen=True, eq=False)
class _Pending:
    step: StepPlan
    replacements: Replacements
    pixels: Tensor
    """(B, H, W, 3) uint8 on the host, filled once `rows` are done."""
    rows: list[Future[None]]
    images: Future[Tensor] | None
    """The finished images, on a CPU."""


class NativeExecutor:
    """The torch-native backend."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._height, self._width = job.config.transform.height_width
        self._normaliser = Normaliser(job)
        self._buffers = BufferPool()
        self._threads = ThreadPoolExecutor(job.config.num_threads, thread_name_prefix="multimix-decode")
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="multimix-finish")
        self._mixers = ThreadPoolExecutor(min(MIXERS, job.config.num_threads), thread_name_prefix="multimix-mix")

    def run(self, steps: Iterable[StepPlan]) -> Generator[tuple[StepPlan, Tensor], None, None]:
        """See `Executor.run`."""
        pending: deque[_Pending] = deque()
        remaining = iter(steps)
        try:
            while True:
                while len(pending) <= self._job.config.prefetch and (step := next(remaining, None)) is not None:
                    pending.append(self._start(step))
                if not pending:
                    return
                first = pending.popleft()
                try:
                    images = self._finish(first)
                    first.replacements.record()
                except BaseException:
                    pending.append(first)
                    raise
                yield first.step, images
        finally:
            for unused in pending:
                if unused.images is not None:
                    unused.images.cancel()  # one that runs already, and waits for rows, ends with them
                for task in unused.rows:
                    task.cancel()

    def close(self) -> None:
        """Stop the threads, after the rows that they are at."""
        self._threads.shutdown(cancel_futures=True)
        self._finisher.shutdown(cancel_futures=True)
        self._mixers.shutdown(cancel_futures=True)

    def _start(self, step: StepPlan) -> _Pending:
        shape = (len(step), self._height, self._width, 3)
        if self._job.device.type == "cuda":  # torch reuses pinned memory once copies from it are over
            pixels = torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True)
        else:
            pixels = self._host_buffer(shape, torch.uint8)
        # several tasks a thread even out their lengths; whole chunks of rows keep the cost of a task small
        chunk = max(1, len(step) // (4 * self._job.config.num_threads))
        replacements, array = Replacements(self._job, step), pixels.numpy()
        rows = [
            self._threads.submit(self._fill_rows, replacements, array, range(first, min(first + chunk, len(step))))
            for first in range(0, len(step), chunk)
        ]
        images = (
            self._finisher.submit(self._finish_on_cpu, step, pixels, rows) if self._job.device.type == "cpu" else None
        )
        return _Pending(step, replacements, pixels, rows, images)

    def _finish(self, pending: _Pending) -> Tensor:
        if pending.images is not None:
            return pending.images.result()
        for task in pending.rows:
            task.result()
        pixels = pending.pixels.to(self._job.device, non_blocking=pending.pixels.is_pinned())
        return self._mix(pending.step, self._normaliser.normalise(pixels), out=None)

    def _finish_on_cpu(self, step: StepPlan, pixels: Tensor, rows: list[Future[None]]) -> Tensor:
        for task in rows:
            task.result()
        shape = self._normaliser.shape(len(step))
        if self._job.mixes:
            planes = self._host_buffer(shape, torch.float32)
            out = self._host_buffer((shape[0], step.lam.shape[1], *shape[1:]), self._job.dtype)
        else:
            planes, out = self._host_buffer(shape, self._job.dtype), None
        return self._mix(step, self._normaliser.normalise(pixels, out=planes), out)

    def _mix(self, step: StepPlan, images: Tensor, out: Tensor | None) -> Tensor:
        if self._job.mixes:
            partner, lam = (torch.from_numpy(array).to(images.device) for array in (step.partner, step.lam))
            if out is None:
                out = images.new_empty((len(step), step.lam.shape[1], *images.shape[1:]), dtype=self._job.dtype)
            images = blend(images, partner, lam, out, self._mixers).flatten(0, 1)
        else:
            images = images.to(self._job.dtype)
        return images.permute(0, 3, 1, 2) if self._job.config.channels_last else images

    def _host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self._buffers.take(int(np.prod(shape)) * dtype.itemsize)
        return torch.from_numpy(memory).view(dtype).view(shape)

    def _fill_rows(self, replacements: Replacements, pixels: NDArray[np.uint8], rows: range) -> None:
        for row in rows:
            while (reason := self._fill_row(replacements.step, pixels, row)) is not None:
                replacements.replace(row, reason)

    def _fill_row(self, step: StepPlan, pixels: NDArray[np.uint8], row: int) -> str | None:
        """Decode one row into its place; what is wrong with the sample, if anything is."""
        job, sample, window = self._job, int(step.sample[row]), step.window[row]
        if (reason := job.known_problem(sample)) is not None:
            return reason
        try:
            image = decode.decode_rgb(job.reader.read(sample))
        except UndecodableError as error:
            return f"cannot be decoded: {error}"
        height, width = int(job.index.height[sample]), int(job.index.width[sample])
        if image.shape[:2] != (height, width):
            return f"decodes to {image.shape[1]}x{image.shape[0]} pixels, its index says {width}x{height}"
        image = decode.upright(image, job.orientation(sample))
        transform = job.config.transform
        if isinstance(transform, TrainTransform):
            image = decode.resize(decode.crop_whole(image, window), self._height, self._width, transform.antialias)
        else:
            image = decode.resize_window(image, window, self._height, self._width, transform.antialias)
        pixels[row] = image[:, ::-1] if step.flip[row] else image
        return None


class Normaliser:
    """`(pixel / 255 - mean) / std` on a batch, uint8 (B, H, W, 3) -> float (B, 3, H, W), or (B, H, W, 3) with channels_last."""

    def __init__(self, job: Job) -> None:
        transform = job.config.transform
        self._channels_last = job.config.channels_last
        self._height_width = transform.height_width
        shape = (3,) if self._channels_last else (3, 1, 1)
        mean, std = (
            np.array(values, dtype=np.float64).reshape(shape) * 255 for values in (transform.mean, transform.std)
        )
        self._mean = torch.from_numpy(mean.astype(np.float32)).to(job.device)
        self._scale = torch.from_numpy((1 / std).astype(np.float32)).to(job.device)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the result for so many rows."""
        height, width = self._height_width
        return (rows, height, width, 3) if self._channels_last else (rows, 3, height, width)

    def normalise(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Computed in float32, and rounded to `out`'s type where one is given."""
        planes = pixels if self._channels_last else pixels.permute(0, 3, 1, 2)
        if out is None or out.dtype != torch.float32:
            result = torch.sub(planes, self._mean).mul_(self._scale).contiguous()
            return result if out is None else out.copy_(result)
        return torch.sub(planes, self._mean, out=out).mul_(self._scale)
