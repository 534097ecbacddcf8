"""Executes step plans with threads and torch: decode and crop on the host, normalise and mix on the device.

A step is cut into tasks of a few rows. Each row is read, decoded, cropped and mirrored into the step's uint8 batch. On a CPU
more threads finish it, so that batches are ready before they are asked for. On an accelerator the uint8 batch lies in pinned
memory, crosses when it is asked for, and the device does the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.augment.host import write_row
from multimix_pipe.native.decode import Decoder, UndecodableError
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Replacements, Unusable
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.mix_stage import MixStage, make_mix_stage
from multimix_pipe.runtime.prefetcher import PendingReads, Prefetcher

Encoded = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Pending:
    replacements: Replacements
    pixels: Tensor
    """(B, 3, H, W), or (B, H, W, 3) for channels_last, uint8 on the host, filled once `rows` are done."""
    reading: PendingReads[Encoded | Unusable]
    rows: list[Future[None]]
    executed: Future[ExecutedStep] | None
    """The finished step, on a CPU."""


class NativeExecutor:
    """The torch-native backend."""

    def __init__(self, context: LoaderContext, mix_stage: MixStage | None = None) -> None:
        self._context = context
        self._mix_stage = mix_stage or make_mix_stage(context)
        self._readers = Prefetcher(context)
        self._decoder = Decoder(context.index)
        self._threads = ThreadPoolExecutor(context.config.num_threads, thread_name_prefix="multimix-decode")
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="multimix-finish")

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """See `Executor.run`."""
        pending: deque[_Pending] = deque()
        remaining = iter(steps)
        try:
            while True:
                while len(pending) <= self._context.config.prefetch and (step := next(remaining, None)) is not None:
                    pending.append(self._start(step))
                if not pending:
                    return
                first = pending.popleft()
                try:
                    executed = self._finish(first)
                    first.replacements.record()
                except BaseException:
                    pending.append(first)
                    raise
                yield executed
        finally:
            for unused in pending:
                if unused.executed is not None:
                    unused.executed.cancel()  # one that runs already, and waits for rows, ends with them
                unused.reading.cancel()
                for task in unused.rows:
                    task.cancel()

    def close(self) -> None:
        """Stop the threads, after the rows that they are at."""
        self._readers.close()
        self._threads.shutdown(cancel_futures=True)
        self._waiter.shutdown(cancel_futures=True)
        self._mix_stage.close()

    def _start(self, step: StepPlan) -> _Pending:
        pixels = self._mix_stage.pixels(len(step))
        # several tasks a thread even out their lengths; whole chunks of rows keep the cost of a task small
        chunk = max(1, len(step) // (4 * self._context.config.num_threads))
        replacements, array = self._context.replacements(step), pixels.numpy()
        reading = self._readers.start(step, replacements.read)
        rows = [
            self._threads.submit(
                self._fill_rows, replacements, reading, array, range(first, min(first + chunk, len(step)))
            )
            for first in range(0, len(step), chunk)
        ]
        # on an accelerator the consumer's thread finishes, for it is on the consumer's stream
        on_host = self._context.device.type == "cpu"
        executed = self._waiter.submit(self._finish_rows, replacements, pixels, rows) if on_host else None
        return _Pending(replacements, pixels, reading, rows, executed)

    def _finish(self, pending: _Pending) -> ExecutedStep:
        if pending.executed is not None:
            return pending.executed.result()
        return self._finish_rows(pending.replacements, pending.pixels, pending.rows)

    def _finish_rows(self, replacements: Replacements, pixels: Tensor, rows: list[Future[None]]) -> ExecutedStep:
        for task in rows:
            task.result()
        return self._mix_stage.finish(replacements.step, pixels)

    def _fill_rows(
        self,
        replacements: Replacements,
        reading: PendingReads[Encoded | Unusable],
        pixels: NDArray[np.uint8],
        rows: range,
    ) -> None:
        def fill(row: int, encoded: Encoded) -> Unusable | None:
            return self._fill_row(replacements.step, row, encoded, pixels)

        for row in rows:
            replacements.use(row, reading.row(row), fill)

    def _fill_row(self, step: StepPlan, row: int, encoded: Encoded, pixels: NDArray[np.uint8]) -> Unusable | None:
        """Decode one row into its place."""
        config, sample, window = self._context.config, int(step.sample[row]), step.window[row]
        orientation = self._context.orientation(sample)
        stop = int(window[0] + window[2]) if config.transform.random and orientation == 1 else None
        try:
            image = self._decoder.decode(sample, encoded, stop)
        except UndecodableError as error:
            return Unusable(str(error))
        write_row(
            pixels[row],
            image,
            config.transform,
            window=window,
            orientation=orientation,
            flip=bool(step.flip[row]),
            channels_last=config.channels_last,
        )
        return None
