"""Executes step plans with threads and torch: decode, crop and resize on the host, normalise and mix on the device.

A step's rows are decoded as soon as their chunk of bytes has been read. On a CPU another thread then runs the mix stage, so that
batches are ready before they are requested. For an accelerator that thread only copies the pixels into pinned memory; they are
uploaded when the step is requested, and the device does the rest on the consumer's stream.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from multimix_pipe.augment.host import Pixels, crop_and_resize
from multimix_pipe.mixing import Field, fields_of
from multimix_pipe.native.decode import Decoder, UndecodableError
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.mix_stage import MixStage, make_mix_stage
from multimix_pipe.runtime.prefetcher import Prefetcher, ReadStep, Row, usable
from multimix_pipe.runtime.rows import RowJob, RowWorkers
from multimix_pipe.runtime.stats import ExecutorStats, ThreadTime

_ROWS_PER_MIXER, _RESIZED_ROWS_PER_MIXER = 80, 12
"""How many decoding threads, times rows per image, one mixing thread keeps up with: it writes rows about 80 times as fast as a
thread decodes them, but resizes partners hardly ten times as fast. Several threads on one batch would wait for the GIL, so each
mixes a whole batch."""


@dataclass(frozen=True, eq=False)
class _Pending:
    read: ReadStep
    rows: RowJob[Row]
    future: Future[Tensor | ExecutedStep]
    """Its result is the executed step on a CPU; otherwise the step's pixels, in pinned memory."""

    def cancel(self) -> None:
        self.future.cancel()
        self.rows.cancel()
        self.read.cancel()


class NativeExecutor:
    """The torch-native backend."""

    def __init__(self, context: LoaderContext, mix_stage: MixStage | None = None) -> None:
        self._context = context
        self._on_host = context.device.type == "cpu"
        self._mix_stage = mix_stage or make_mix_stage(context)
        self._prefetcher = Prefetcher(context)
        self._decoder = Decoder(context.index)
        self._decoders = RowWorkers(context.num_threads, "multimix-decode")
        config = context.config
        rows_per_image = config.mix.k if config.mix is not None and config.expand and self._on_host else 1
        resizes = config.mix is not None and Field.RESIZED in fields_of(config.mix)
        threads = 1 + context.num_threads * rows_per_image // (_RESIZED_ROWS_PER_MIXER if resizes else _ROWS_PER_MIXER)
        self._mixers = ThreadPoolExecutor(threads, thread_name_prefix="multimix-finish")
        self._mix_time = ThreadTime()
        # weak, because the steps of an iteration refer to their executor
        self._pending: weakref.ref[deque[_Pending]] | None = None

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """See `Executor.run`."""
        pending: deque[_Pending] = deque()
        self._pending = weakref.ref(pending)
        reading = self._prefetcher.read(steps)
        try:
            while True:
                while len(pending) <= self._context.config.prefetch and (read := next(reading, None)) is not None:
                    pending.append(self._start(read))
                if not pending:
                    return
                result = pending[0].future.result()
                replacements = pending.popleft().read.replacements
                if isinstance(result, Tensor):  # finished here, because this thread uses the consumer's stream
                    with self._mix_time:
                        result = self._mix_stage.finish(replacements.step, result)
                replacements.record()
                yield result
        finally:
            reading.close()
            for unused in pending:
                self._drop(unused)

    def stats(self) -> ExecutorStats:
        """See `Executor.stats`."""
        pending = self._pending() if self._pending is not None else None
        ready = sum(step.future.done() for step in list(pending or ()))
        return ExecutorStats(self._decoders.time.seconds, self._mix_time.seconds, ready)

    def close(self) -> None:
        """Stop the threads once their current rows are done."""
        self._prefetcher.close()
        self._decoders.close()
        self._mixers.shutdown(cancel_futures=True)
        self._mix_stage.close()

    def _start(self, read: ReadStep) -> _Pending:
        replacements = read.replacements
        images: list[Any] = [None] * len(replacements.step)  # Pixels, or lists of K crops
        decode_row: Callable[..., Any] = self._decode_crops if replacements.step.crops_each else self._decode

        def decode(row: int, encoded: Encoded) -> Any:
            return decode_row(replacements.step, row, encoded)

        def work(row: int, encoded: Row) -> None:
            images[row] = replacements.use(row, usable(encoded), decode)

        job = RowJob[Row](len(images), work)
        pending = _Pending(read, job, Future())
        try:
            self._decoders.add(job)
            for task in list(read.chunks):
                task.add_done_callback(partial(self._decode_rows, read, job))
            return replace(pending, future=self._mixers.submit(self._finish, replacements, job, images))
        except BaseException:
            self._drop(pending)
            raise

    def _drop(self, unused: _Pending) -> None:
        unused.cancel()
        self._decoders.remove(unused.rows)

    def _decode_rows(self, read: ReadStep, job: RowJob[Row], task: Future[list[Row]]) -> None:
        try:
            rows = read.chunks.pop(task)  # so that its bytes are freed once they have been decoded
            self._decoders.start(job, zip(rows, task.result(), strict=True))
        except CancelledError:
            job.cancel()
        except BaseException as error:  # an error in a callback would be lost: no thread can be started, for example
            job.fail(error)

    def _decode(self, step: StepPlan, row: int, encoded: Encoded) -> Pixels | Unusable:
        transform, sample_id, window = self._context.config.transform, int(step.sample[row]), step.window[row]
        orientation = self._context.orientation(sample_id)
        stop = int(window[0] + window[2]) if transform.random and orientation == 1 else None
        try:
            image = self._decoder.decode(sample_id, encoded, stop)
        except UndecodableError as error:
            return Unusable(str(error))
        return crop_and_resize(image, transform, window=window, orientation=orientation)

    def _decode_crops(self, step: StepPlan, row: int, encoded: Encoded) -> list[Pixels] | Unusable:
        """Return the K crops of a row's image, which is decoded once."""
        transform, sample_id, windows = self._context.config.transform, int(step.sample[row]), step.window[row]
        orientation = self._context.orientation(sample_id)
        stop = int((windows[:, 0] + windows[:, 2]).max()) if orientation == 1 else None
        try:
            image = self._decoder.decode(sample_id, encoded, stop)
        except UndecodableError as error:
            return Unusable(str(error))
        return [crop_and_resize(image, transform, window=window, orientation=orientation) for window in windows]

    def _finish(self, replacements: Replacements, job: RowJob[Row], images: list[Any]) -> Tensor | ExecutedStep:
        job.wait()
        step = replacements.step
        if step.crops_each:
            images = list(chain.from_iterable(images))
        with self._mix_time:
            pixels = self._mix_stage.gather(images, step.flip)
            return self._mix_stage.finish(step, pixels) if self._on_host else pixels
