"""Executes step plans with a DALI pipeline.

Host threads read a step's bytes ahead of DALI and check every new header with DALI's own parser, so that bytes that could crash
DALI never enter it.

On a GPU the graph ends with the mixed batch. On a CPU it ends with decoded windows, and the host resizes and mixes: there DALI's
resize takes three to four times as long as torch's, and its arithmetic needs several passes over memory, the mix stage only one
(bench/loading.py mixing). The mix stage also serves `expand=False`, crops="each", and steps in which DALI failed to
decode a row: these are decoded a few rows at a time, but must be mixed as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.tensors import TensorListCPU, TensorListGPU
from torch import Tensor

from multimix_pipe.augment.crop import enclosing_windows
from multimix_pipe.augment.host import Pixels, crop_and_resize
from multimix_pipe.dali.decode_check import HeaderCheck, decodes_regions, undecodable_row
from multimix_pipe.dali.graph import Ends, Graph
from multimix_pipe.errors import MultiMixError
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.mix_stage import MixStage, make_mix_stage
from multimix_pipe.runtime.prefetcher import Prefetcher
from multimix_pipe.runtime.rows import RowJob, RowWorkers
from multimix_pipe.runtime.stats import ExecutorStats, ThreadTime
from multimix_pipe.runtime.tensors import KeptUntilRead

ROWS_ALONE = 2
"""Rows per thread that are decoded together after a row of the step could not be decoded."""

MIXED_QUEUE = 2
"""Maximum number of batches in the queue of a graph that mixes: at B = 256, K = 5 each takes 0.8 GB in float32."""

HW_DECODER_LOAD = {"fast": 0.65, "exact": 0.0}
"""By `decode=`: 21,900 and 10,600 images/s on an H200. 1.0 is exact too, but then taking a batch waits for the consumer."""

TensorList = TensorListCPU | TensorListGPU


@dataclass(frozen=True, eq=False)
class _Work:
    """A step that was fed to DALI, with what is needed to feed it again."""

    replacements: Replacements
    encoded: list[Encoded]
    """The encoded bytes of each row, as fed to DALI."""

    @property
    def step(self) -> StepPlan:
        return self.replacements.step


class DaliExecutor:
    """The DALI backend."""

    def __init__(self, context: LoaderContext, mix_stage: MixStage | None = None, ends: Ends | None = None) -> None:
        """`ends` says how far the graph goes; by default as far as is fastest on the device."""
        config = context.config
        on_gpu = context.device.type == "cuda"
        if ends is None and on_gpu:
            ends = "batch" if config.expand else "pixels"
        elif ends is None:
            ends = "window" if config.transform.random else "pixels"
        mixes = ends == "batch" and context.mixes
        queue = config.prefetch + 1  # the requested step, and those ahead of it
        self._context = context
        self._mix_stage = mix_stage or make_mix_stage(context, parallel=True)
        self._graph = self._graph_of_one = Graph(
            batch_size=config.batch_size,
            device_id=context.device.index if on_gpu else None,
            num_threads=context.num_threads,
            prefetch=min(queue, MIXED_QUEUE) if mixes else queue,
            transform=config.transform,
            exif=config.exif,
            channels_last=config.channels_last,
            ends=ends,
            mix=config.mix if mixes else None,
            hw_decoder_load=HW_DECODER_LOAD[config.decode],
            decodes_regions=decodes_regions() if on_gpu and config.transform.random else True,
            half=config.dtype == "float16",
        )
        self._headers = HeaderCheck(context.index)
        self._prefetcher = Prefetcher(context, self._headers.checked)
        self._resizers = RowWorkers(context.num_threads, "multimix-resize")
        self._kept = KeptUntilRead(context.device)
        self._stream = torch.cuda.Stream(context.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._pipeline: Pipeline | None = None
        self._started = False  # whether the pipeline's first schedule_run has been called
        self._run = object()  # the current iteration
        self._mix_time = ThreadTime()
        self._in_flight: deque[_Work | None] = deque()  # fed, and not taken; None: its result is not wanted

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """See `Executor.run`."""
        self._drop_unwanted()
        self._run = run = object()
        reading = self._prefetcher.read(steps)
        failure: Exception | None = None
        try:
            while True:
                while failure is None and len(self._in_flight) < self._graph.prefetch:
                    read = next(reading, None)
                    if read is None:
                        break
                    try:
                        encoded = read.rows()
                    except Exception as error:  # raised when the step is due, after those in flight
                        failure = error
                    else:
                        self._feed(_Work(read.replacements, encoded))
                if not self._in_flight or self._in_flight[0] is None:
                    if failure is not None:
                        raise failure
                    return
                yield self._take(self._in_flight[0])
        except (GeneratorExit, MultiMixError):
            raise
        except BaseException:
            # For example an interrupt between taking a result and recording that: what is in flight is not known.
            self._discard_pipeline()
            raise
        finally:
            reading.close()
            if self._run is run:  # not if a thread ends an iteration after the next one has begun
                self._in_flight = deque([None] * len(self._in_flight))

    def stats(self) -> ExecutorStats:
        """See `Executor.stats`."""
        return ExecutorStats(decode_s=None, mix_s=self._mix_time.seconds, queue=None)

    def close(self) -> None:
        """Free the pipeline and the threads."""
        self._prefetcher.close()
        self._resizers.close()
        self._mix_stage.close()
        self._kept.close()
        self._discard_pipeline()

    def _feed(self, work: _Work) -> None:
        """Feed a step to DALI, which starts to work on it."""
        crops = 1 if self._graph.ends == "window" else work.step.crops
        if crops != self._graph.crops:  # the first step of an epoch with other settings, so nothing is in flight
            self._discard_pipeline()
            self._graph = self._graph_for(crops)
        if self._pipeline is None:
            self._pipeline, self._started = self._graph.build(), False
        self._feed_inputs(self._pipeline, self._graph, work.step, work.encoded)
        self._in_flight.append(work)
        if self._started:
            self._pipeline.schedule_run()
        elif len(self._in_flight) == self._graph.prefetch:
            self._pipeline.schedule_run()  # the first call runs as many steps as the queue is deep
            self._started = True

    def _graph_for(self, crops: int) -> Graph:
        """Return the graph for steps with that many crops of each image. Several crops are mixed behind the graph."""
        if crops == 1:
            return self._graph_of_one
        return replace(
            self._graph_of_one, crops=crops, ends="pixels", mix=None, prefetch=self._context.config.prefetch + 1
        )

    def _feed_inputs(self, pipeline: Pipeline, graph: Graph, step: StepPlan, encoded: list[Encoded]) -> None:
        pipeline.feed_input("encoded", encoded)
        for name, array in graph.inputs(step, self._context.index).items():
            pipeline.feed_input(name, array)

    def _take(self, work: _Work) -> ExecutedStep:
        """Return the result of the first step in flight."""
        assert self._pipeline is not None
        while not self._started:  # fewer steps than the queue is deep: fill it with steps whose results are not wanted
            self._feed(work)
            self._in_flight[-1] = None
        try:
            outputs = self._outputs(self._pipeline)
        except RuntimeError:
            # The pipeline is lost, and a later step may have caused the error: run this one alone, and feed the later ones again.
            later_steps = [later for later in list(self._in_flight)[1:] if later is not None]
            self._discard_pipeline()
            pixels = self._run_alone(work)
            for later in later_steps:
                self._feed(later)
        else:
            self._in_flight.popleft()
            if self._graph.ends == "batch":
                work.replacements.record()
                return self._hand_over(work.step, outputs)
            pixels = self._pixels(work.step, self._graph, [outputs])
        work.replacements.record()
        with self._mix_time:
            return self._mix_stage.finish(work.step, pixels)

    def _run_alone(self, work: _Work) -> Tensor:
        """Return the pixels of one step, with the samples that DALI cannot decode replaced.

        It is decoded a few rows at a time, because an error also loses the rows that are decoded together with the bad one.
        """
        ends: Ends = "window" if self._graph.ends == "window" else "pixels"
        graph, size = replace(self._graph, prefetch=1, ends=ends, mix=None), ROWS_ALONE * self._graph.num_threads
        pipeline, decoded = graph.build(), []
        for first in range(0, len(work.step), size):
            rows = slice(first, first + size)
            while True:
                self._feed_inputs(pipeline, graph, work.step.rows(rows), work.encoded[rows])
                pipeline.schedule_run()
                try:
                    decoded.append(self._outputs(pipeline))
                    break
                except RuntimeError as error:
                    row = first + undecodable_row(error)
                    work.replacements.replace(row, Unusable("DALI cannot decode its crop window"))
                    work.encoded[row] = self._headers.checked(work.replacements, row, work.replacements.read(row))
                    pipeline = graph.build()
        return self._pixels(work.step, graph, decoded)

    def _outputs(self, pipeline: Pipeline) -> TensorList:
        if self._stream is None:
            outputs: TensorList = pipeline.outputs()[0]
            return outputs
        with torch.cuda.device(self._context.device):  # DALI orders its work on the current device
            outputs = pipeline.outputs(cuda_stream=self._stream)[0]
            return outputs

    def _hand_over(self, step: StepPlan, outputs: TensorList) -> ExecutedStep:
        """Return the executed step of a batch that the graph has mixed, copied into torch's memory."""
        images = self._copied([outputs], self._context.dtype)
        if self._context.mixes:
            images = images.flatten(0, 1)
        if self._context.config.channels_last:
            images = images.permute(0, 3, 1, 2)
        return ExecutedStep(step, images, self._context.tensors(step))

    def _pixels(self, step: StepPlan, graph: Graph, decoded: list[TensorList]) -> Tensor:
        """Return the batch for the mix stage from a graph's outputs: one for the whole step, or one for every few rows."""
        if graph.ends == "window":
            return self._resized(step, decoded)
        if self._stream is None and len(decoded) == 1:  # the mix stage reads it while DALI's memory is valid
            pixels = torch.from_numpy(np.asarray(decoded[0].as_tensor()))
        else:
            pixels = self._copied(decoded, torch.uint8)
        return pixels if graph.crops == 1 else pixels.flatten(0, 1)

    def _copied(self, decoded: list[TensorList], dtype: torch.dtype) -> Tensor:
        """Return DALI's outputs as one batch in torch's memory.

        On a GPU they are copied on the executor's own stream, which the consumer's stream waits for: DALI's memory is free once
        the copy is done, no matter what the consumer has queued. DLPack is avoided, as its deleter spins a core meanwhile.
        """
        if self._stream is None:
            rows = [torch.from_numpy(np.asarray(part.as_tensor())) for part in decoded]
            return torch.cat(rows).to(dtype) if len(rows) > 1 else rows[0].to(dtype, copy=True)
        with torch.cuda.stream(self._stream):
            rows = [torch.as_tensor(part.as_tensor(), device=self._context.device) for part in decoded]
            copied = torch.cat(rows).to(dtype) if len(rows) > 1 else rows[0].to(dtype, copy=True)
            self._kept.keep(decoded)
        consumer = torch.cuda.current_stream(self._context.device)
        consumer.wait_stream(self._stream)
        copied.record_stream(consumer)  # its memory must not be reused while the consumer reads it
        return copied

    def _resized(self, step: StepPlan, decoded: list[TensorList]) -> Tensor:
        windows = [np.asarray(part[row]) for part in decoded for row in range(len(part))]
        images: list[Any] = [None] * len(windows)  # Pixels, or lists of K crops
        transform = self._context.config.transform

        def resize(row: int, window: Pixels) -> None:
            orientation = self._context.orientation(int(step.sample[row]))
            images[row] = crop_and_resize(window, transform, window=None, orientation=orientation)

        def resize_crops(row: int, window: Pixels) -> None:
            orientation = self._context.orientation(int(step.sample[row]))
            images[row] = [
                crop_and_resize(window, transform, window=crop, orientation=orientation) for crop in crops[row]
            ]

        if step.crops_each:
            crops = step.window.copy()
            crops[..., :2] -= enclosing_windows(step.window)[:, None, :2]  # inside what was decoded
        job = RowJob[Pixels](len(windows), resize_crops if step.crops_each else resize)
        self._resizers.add(job)
        self._resizers.start(job, enumerate(windows))
        job.wait()
        if step.crops_each:
            images = list(chain.from_iterable(images))
        with self._mix_time:
            return self._mix_stage.gather(images, step.flip)

    def _drop_unwanted(self) -> None:
        """Discard the results that an earlier iteration left behind."""
        try:
            while self._in_flight and self._started:
                self._in_flight.popleft()
                self._outputs(self._pipeline)
        except RuntimeError:  # the error of a step that is not wanted
            self._discard_pipeline()
        if self._in_flight:  # fed, but never started
            self._discard_pipeline()

    def _discard_pipeline(self) -> None:
        self._pipeline, self._started = None, False
        self._in_flight.clear()
