"""Executes step plans with threads and torch: decode, crop and resize on the host, normalise and mix on the device.

A step's rows are decoded as soon as their chunk of bytes has been read. On a CPU another thread then runs the mix stage, so that
batches are ready before they are requested. For an accelerator that thread only copies the pixels into pinned memory; they are
uploaded when the step is requested, and the device does the rest on the consumer's stream. So that the decoding threads never
wait for the mix stage, some more steps are decoded than batches are finished.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from multimix_pipe.augment.host import Pixels, crop_and_resize
from multimix_pipe.native.decode import Decoder, UndecodableError
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.mix_stage import MixStage, make_mix_stage
from multimix_pipe.runtime.prefetcher import Prefetcher, ReadStep, Row, usable
from multimix_pipe.runtime.rows import RowJob, RowWorkers

_ROWS_AHEAD = 4
"""Rows per decoding thread that are decoded beyond the batches that are finished."""

_ROWS_PER_MIXER = 80
"""Decoding threads, times rows per image, that one thread of the mix stage keeps up with: it writes about 80 times as many rows
per second as a thread decodes. Threads that share a batch would wait for the GIL; so each finishes its own one."""


@dataclass(frozen=True, eq=False)
class _Decoding:
    """A step whose rows are being decoded."""

    read: ReadStep
    job: RowJob[Row]
    images: list[Pixels]

    def cancel(self) -> None:
        self.job.cancel()
        self.read.cancel()


@dataclass(frozen=True, eq=False)
class _Pending:
    """A step that a mixing thread finishes once its rows are decoded."""

    decoding: _Decoding
    future: Future[Tensor | ExecutedStep]
    """Its result is the executed step on a CPU; otherwise the step's pixels, in pinned memory."""


class NativeExecutor:
    """The torch-native backend."""

    def __init__(self, context: LoaderContext, mix_stage: MixStage | None = None) -> None:
        self._context = context
        self._on_host = context.device.type == "cpu"
        self._mix_stage = mix_stage or make_mix_stage(context)
        self._prefetcher = Prefetcher(context, _accept)
        self._decoder = Decoder(context.index)
        self._decoders = RowWorkers(context.config.num_threads, "multimix-decode")
        config = context.config
        rows_per_image = config.mix.k if config.mix is not None and context.mixes and self._on_host else 1
        threads = 1 + config.num_threads * rows_per_image // _ROWS_PER_MIXER
        self._mixers = ThreadPoolExecutor(threads, thread_name_prefix="multimix-mix")

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """See `Executor.run`."""
        decoding, pending = deque[_Decoding](), deque[_Pending]()
        config = self._context.config
        ahead = config.prefetch + 1 + math.ceil(_ROWS_AHEAD * config.num_threads / config.batch_size)
        reading = self._prefetcher.read(steps)
        try:
            while True:
                while len(decoding) + len(pending) < ahead and (read := next(reading, None)) is not None:
                    decoding.append(self._start(read))
                while decoding and len(pending) <= config.prefetch:
                    started = decoding.popleft()
                    pending.append(_Pending(started, self._mixers.submit(self._finish, started)))
                if not pending:
                    return
                result = pending[0].future.result()
                replacements = pending.popleft().decoding.read.replacements
                if isinstance(result, Tensor):  # finished here, because this thread uses the consumer's stream
                    result = self._mix_stage.finish(replacements.step, result)
                replacements.record()
                yield result
        finally:
            reading.close()
            for unused in pending:
                unused.future.cancel()
            for unfinished in [*(unused.decoding for unused in pending), *decoding]:
                unfinished.cancel()
                self._decoders.remove(unfinished.job)

    def close(self) -> None:
        """Stop the threads once their current rows are done."""
        self._prefetcher.close()
        self._decoders.close()
        self._mixers.shutdown(cancel_futures=True)
        self._mix_stage.close()

    def _start(self, read: ReadStep) -> _Decoding:
        replacements = read.replacements
        images: list[Pixels] = [np.empty(0, dtype=np.uint8)] * len(replacements.step)

        def decode(row: int, encoded: Encoded) -> Pixels | Unusable:
            return self._decode(replacements.step, row, encoded)

        def work(row: int, encoded: Row) -> None:
            images[row] = replacements.use(row, usable(encoded), decode)

        job = RowJob[Row](len(images), work)
        self._decoders.add(job)
        for chunk in read.chunks:
            chunk.task.add_done_callback(partial(self._decode_rows, job, chunk.rows))
        return _Decoding(read, job, images)

    def _decode_rows(self, job: RowJob[Row], rows: list[int], task: Future[list[Row]]) -> None:
        if task.cancelled():
            job.cancel()
        else:
            self._decoders.start(job, zip(rows, task.result(), strict=True))

    def _decode(self, step: StepPlan, row: int, encoded: Encoded) -> Pixels | Unusable:
        transform, sample_id, window = self._context.config.transform, int(step.sample[row]), step.window[row]
        orientation = self._context.orientation(sample_id)
        stop = int(window[0] + window[2]) if transform.random and orientation == 1 else None
        try:
            image = self._decoder.decode(sample_id, encoded, stop)
        except UndecodableError as error:
            return Unusable(str(error))
        return crop_and_resize(image, transform, window=window, orientation=orientation)

    def _finish(self, decoding: _Decoding) -> Tensor | ExecutedStep:
        decoding.job.wait()
        step = decoding.read.replacements.step
        pixels = self._mix_stage.gather(decoding.images, step.flip)
        return self._mix_stage.finish(step, pixels) if self._on_host else pixels


def _accept(replacements: Replacements, row: int, encoded: Encoded | Unusable) -> Encoded:
    """Accept all bytes: decoding shows whether they are valid."""
    return replacements.use(row, encoded, lambda row, encoded: encoded)
