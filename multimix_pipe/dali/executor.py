"""Executes step plans with a DALI pipeline.

Threads of the host read a step's bytes ahead of DALI, and parse with DALI's own parser each header that they have not seen
before: bytes that it might choke on never enter. DALI's part ends with pixels: a finisher normalises and mixes them where they
lie, with the arithmetic and into memory that both backends share (multimix_pipe/finishing.py). DALI's own arithmetic, which
takes several passes, is measured against that in bench/mix_stage.py; `dali.multi_mix` is the stage for pipelines of one's own.

On a CPU a training graph ends with the decoded windows: DALI's resize takes three to four times as long there as torch's
(bench/decode.py), and half of all of a graph that has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline
from nvidia.dali.tensors import TensorListCPU, TensorListGPU
from torch import Tensor

from multimix_pipe.augment.host import Pixels, put, resize, upright
from multimix_pipe.config import TrainTransform
from multimix_pipe.dali.failures import header_problem, undecodable_row
from multimix_pipe.dali.graph import Graph
from multimix_pipe.errors import MultiMixError
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext, Replacements
from multimix_pipe.runtime.mix_stage import MixStage, make_mix_stage
from multimix_pipe.runtime.prefetcher import PendingReads, Prefetcher

STEPS_READ = 4
"""Steps that are being read, besides those that DALI has."""

ROWS_ALONE = 2
"""Rows a thread that are decoded together, where one of a step cannot be decoded."""

HEADER = 4096
"""Bytes of an image by whose checksum a header is known again: in most images they hold it all."""

Encoded = NDArray[np.uint8]
TensorList = TensorListCPU | TensorListGPU


@dataclass(frozen=True, eq=False)
class _Work:
    """A step on its way through DALI, with what is needed to feed it once more."""

    step: StepPlan
    replacements: Replacements
    reading: PendingReads[Encoded]
    encoded: list[Encoded] = field(default_factory=list)
    """The bytes that DALI was fed with."""


class DaliExecutor:
    """The DALI backend."""

    def __init__(self, context: LoaderContext, mix_stage: MixStage | None = None, resizes: bool | None = None) -> None:
        """`resizes`: whether the graph resizes, turns and mirrors; None: as is fastest on the device."""
        config = context.config
        on_gpu = context.device.type == "cuda"
        self._context = context
        self._mix_stage = mix_stage or make_mix_stage(context)
        self._graph = Graph(
            batch_size=config.batch_size,
            device_id=context.device.index if on_gpu else None,
            num_threads=config.num_threads,
            prefetch=config.prefetch + 1,  # the step that is asked for, and those ahead of it
            transform=config.transform,
            exif=config.exif,
            channels_last=config.channels_last,
            resizes=on_gpu or not isinstance(config.transform, TrainTransform) if resizes is None else resizes,
        )
        # checksums of the beginnings of samples whose header was parsed; 0: of none
        self._parsed = np.zeros(len(context.index), dtype=np.uint32)
        self._readers = Prefetcher(context)
        self._resizers = ThreadPoolExecutor(config.num_threads, thread_name_prefix="multimix-resize")
        self._pipeline: Pipeline | None = None
        self._started = False  # the pipeline's first schedule_run has been called
        self._in_flight: deque[_Work | None] = deque()  # fed, results not taken; None: a result that nobody wants

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """See `Executor.run`."""
        self._drop_unwanted()
        remaining = iter(steps)
        reads: deque[_Work] = deque()
        failure: Exception | None = None
        try:
            while True:
                while failure is None and len(self._in_flight) < self._graph.prefetch:
                    reads.extend(map(self._start_reading, islice(remaining, STEPS_READ - len(reads))))
                    if not reads:
                        break
                    try:
                        work = reads.popleft()
                        work.encoded[:] = work.reading.rows()
                        self._feed(work)
                    except MultiMixError as error:  # raised at its step: after what is in flight
                        failure = error
                if not self._in_flight or self._in_flight[0] is None:
                    if failure is not None:
                        raise failure
                    return
                yield self._take(self._in_flight[0])
        except (GeneratorExit, MultiMixError):
            raise
        except BaseException:
            # an interrupt, say, between taking a result and noting it: nobody knows what is in flight
            self._discard_pipeline()
            raise
        finally:
            for unfed in reads:
                unfed.reading.cancel()
            self._in_flight = deque([None] * len(self._in_flight))

    def close(self) -> None:
        """Free the pipeline and the reading threads."""
        self._readers.close()
        self._resizers.shutdown(cancel_futures=True)
        self._mix_stage.close()
        self._discard_pipeline()

    def _start_reading(self, step: StepPlan) -> _Work:
        replacements = Replacements(self._context, step)
        reading = self._readers.start(step, lambda row, memory: self._read_row(replacements, row, memory))
        return _Work(step, replacements, reading)

    def _read_row(self, replacements: Replacements, row: int, memory: Encoded | None = None) -> Encoded:
        """The bytes of a row, with another sample in the place of one that must not enter DALI."""
        step = replacements.step
        while True:
            sample = int(step.sample[row])
            read = self._context.read(sample, memory)
            if isinstance(read, str):
                reason = read
            else:
                problem = self._problem(sample, read)
                if problem is None:
                    return read
                reason = problem
            replacements.replace(row, reason)
            memory = None  # that is of the first sample's size

    def _problem(self, sample: int, encoded: Encoded) -> str | None:
        """Why these bytes must not enter DALI, whose pipeline may not survive a header that is not the index's."""
        checksum = crc32(encoded[:HEADER].data)
        if checksum == self._parsed[sample]:
            return None
        reason = header_problem(
            encoded, int(self._context.index.height[sample]), int(self._context.index.width[sample])
        )
        self._parsed[sample] = checksum if reason is None else 0
        return reason

    def _feed(self, work: _Work) -> None:
        """Give a step to DALI, which starts on it."""
        if self._pipeline is None:
            self._pipeline, self._started = self._graph.build(), False
        self._feed_inputs(self._pipeline, work.step, work.encoded)
        self._in_flight.append(work)
        if self._started:
            self._pipeline.schedule_run()
        elif len(self._in_flight) == self._graph.prefetch:
            self._pipeline.schedule_run()  # the first one runs as often as the queue is deep
            self._started = True

    def _feed_inputs(self, pipeline: Pipeline, step: StepPlan, encoded: list[Encoded]) -> None:
        pipeline.feed_input("encoded", encoded)
        for name, array in self._graph.inputs(step, self._context.index).items():
            pipeline.feed_input(name, array)

    def _take(self, work: _Work) -> ExecutedStep:
        """The results of the first step in flight."""
        assert self._pipeline is not None
        while not self._started:  # fewer steps than the queue is deep: fill it up with what nobody wants
            self._feed(work)
            self._in_flight[-1] = None
        try:
            decoded = [self._outputs(self._pipeline)]
        except RuntimeError:
            # the pipeline is lost, and the error may be of a later step: find out, then start again behind this one
            behind = [later for later in list(self._in_flight)[1:] if later is not None]
            self._discard_pipeline()
            decoded = self._run_alone(work)
            for later in behind:
                self._feed(later)
        else:
            self._in_flight.popleft()
        work.replacements.record()
        return self._mix_stage.finish(work.step, self._pixels(work.step, decoded))

    def _run_alone(self, work: _Work) -> list[TensorList]:
        """Execute one step apart, with other samples in the place of those that DALI cannot decode; results of rows in turn.

        A few rows at a time, as an error takes the results of all that are decoded with it.
        """
        graph, size = replace(self._graph, prefetch=1), ROWS_ALONE * self._graph.num_threads
        pipeline, decoded = graph.build(), []
        for first in range(0, len(work.step), size):
            rows = slice(first, first + size)
            while True:
                self._feed_inputs(pipeline, work.step.rows(rows), work.encoded[rows])
                pipeline.schedule_run()
                try:
                    decoded.append(self._outputs(pipeline))
                    break
                except RuntimeError as error:
                    row = first + undecodable_row(error)
                    work.replacements.replace(row, "DALI cannot decode this window of it")
                    work.encoded[row] = self._read_row(work.replacements, row)
                    pipeline = graph.build()
        return decoded

    def _outputs(self, pipeline: Pipeline) -> TensorList:
        stream = torch.cuda.current_stream(self._context.device) if self._context.device.type == "cuda" else None
        decoded: TensorList = pipeline.outputs(cuda_stream=stream)[0]
        return decoded

    def _pixels(self, step: StepPlan, decoded: list[TensorList]) -> Tensor:
        """The batch for the finisher, of what the graph gave for its rows: at once, or a few at a time."""
        if self._graph.resizes:
            parts: list[Tensor] = [torch.utils.dlpack.from_dlpack(part.as_tensor()) for part in decoded]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        pixels = self._mix_stage.pixels(len(step))
        rows = pixels.numpy()
        windows = [part[row] for part in decoded for row in range(len(part))]
        for _ in self._resizers.map(
            lambda row: self._resize(step, row, np.asarray(windows[row]), rows[row]), range(len(step))
        ):
            pass
        return pixels

    def _resize(self, step: StepPlan, row: int, window: Pixels, pixels: NDArray[np.uint8]) -> None:
        config = self._context.config
        window = upright(window, self._context.orientation(int(step.sample[row])))
        image = resize(window, *config.transform.height_width, config.transform.antialias)
        put(image, bool(step.flip[row]), config.channels_last, pixels)

    def _drop_unwanted(self) -> None:
        """Take the results that an earlier iteration left behind."""
        try:
            while self._in_flight and self._started:
                self._in_flight.popleft()
                self._outputs(self._pipeline)
        except RuntimeError:  # an error that nobody will see
            self._discard_pipeline()
        if self._in_flight:  # fed and never started
            self._discard_pipeline()

    def _discard_pipeline(self) -> None:
        self._pipeline, self._started = None, False
        self._in_flight.clear()
