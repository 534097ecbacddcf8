"""Executes step plans with a DALI pipeline.

Threads of the host read a step's bytes ahead of DALI, and check each header that they have not seen before with DALI's own
parser: bytes that it might choke on never enter.

On a GPU the graph ends with the mixed batch. On a CPU it ends with decoded windows, and the host resizes and mixes: DALI's resize
takes three to four times as long there as torch's (bench/decode.py), and its arithmetic needs several passes over memory where
the mix stage needs one (bench/mix_stage.py). That route also serves `expand=False`, and a step whose bad rows were replaced: it
is decoded a few rows at a time, and must be mixed as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.tensors import TensorListCPU, TensorListGPU
from torch import Tensor

from multimix_pipe.augment.host import Pixels, crop_and_resize
from multimix_pipe.dali.decode_check import HeaderCheck, undecodable_row, warn_of_old_nvjpeg
from multimix_pipe.dali.graph import Ends, Graph
from multimix_pipe.errors import MultiMixError
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.mix_stage import MixStage, make_mix_stage
from multimix_pipe.runtime.prefetcher import Prefetcher
from multimix_pipe.runtime.rows import RowJob, RowWorkers
from multimix_pipe.runtime.tensors import KeptUntilRead

ROWS_ALONE = 2
"""Rows a thread that are decoded together, where one of a step cannot be decoded."""

MIXED_QUEUE = 2
"""Batches in the queue of a graph that mixes: at B = 256, K = 5 one is 0.8 GB in float32."""

HW_DECODER_LOAD = {"fast": 0.65, "exact": 0.0}
"""By `decode=`; on an H200 21,900 and 10,600 images/s. At 1.0, which is exact too, taking a batch waits for the consumer."""

TensorList = TensorListCPU | TensorListGPU


@dataclass(frozen=True, eq=False)
class _Work:
    """A step on its way through DALI, with what is needed to feed it once more."""

    replacements: Replacements
    encoded: list[Encoded]
    """The bytes that DALI was fed with."""

    @property
    def step(self) -> StepPlan:
        return self.replacements.step


class DaliExecutor:
    """The DALI backend."""

    def __init__(self, context: LoaderContext, mix_stage: MixStage | None = None, ends: Ends | None = None) -> None:
        """`ends`: how far the graph goes; None: as far as is fastest on the device."""
        config = context.config
        on_gpu = context.device.type == "cuda"
        if ends is None and on_gpu:
            ends = "batch" if config.expand else "pixels"
        elif ends is None:
            ends = "window" if config.transform.random else "pixels"
        if on_gpu:
            warn_of_old_nvjpeg()
        mixes = ends == "batch" and context.mixes
        queue = config.prefetch + 1  # the step that is asked for, and those ahead of it
        self._context = context
        self._mix_stage = mix_stage or make_mix_stage(context)
        self._graph = Graph(
            batch_size=config.batch_size,
            device_id=context.device.index if on_gpu else None,
            num_threads=config.num_threads,
            prefetch=min(queue, MIXED_QUEUE) if mixes else queue,
            transform=config.transform,
            exif=config.exif,
            channels_last=config.channels_last,
            ends=ends,
            mix=config.mix if mixes else None,
            hw_decoder_load=HW_DECODER_LOAD[config.decode],
            half=config.dtype == "float16",
        )
        self._headers = HeaderCheck(context.index)
        self._prefetcher = Prefetcher(context, self._headers.checked)
        self._resizers = RowWorkers(config.num_threads, "multimix-resize")
        self._kept = KeptUntilRead(context.device)
        self._stream = torch.cuda.Stream(context.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._pipeline: Pipeline | None = None
        self._started = False  # the pipeline's first schedule_run has been called
        self._in_flight: deque[_Work | None] = deque()  # fed, results not taken; None: a result that nobody wants

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """See `Executor.run`."""
        self._drop_unwanted()
        reading = self._prefetcher.read(steps)
        failure: Exception | None = None
        try:
            while True:
                while failure is None and len(self._in_flight) < self._graph.prefetch:
                    read = next(reading, None)
                    if read is None:
                        break
                    try:
                        self._feed(_Work(read.replacements, read.rows()))
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
            reading.close()
            self._in_flight = deque([None] * len(self._in_flight))

    def close(self) -> None:
        """Free the pipeline and the reading threads."""
        self._prefetcher.close()
        self._resizers.close()
        self._mix_stage.close()
        self._kept.close()
        self._discard_pipeline()

    def _feed(self, work: _Work) -> None:
        """Give a step to DALI, which starts on it."""
        if self._pipeline is None:
            self._pipeline, self._started = self._graph.build(), False
        self._feed_inputs(self._pipeline, self._graph, work.step, work.encoded)
        self._in_flight.append(work)
        if self._started:
            self._pipeline.schedule_run()
        elif len(self._in_flight) == self._graph.prefetch:
            self._pipeline.schedule_run()  # the first one runs as often as the queue is deep
            self._started = True

    def _feed_inputs(self, pipeline: Pipeline, graph: Graph, step: StepPlan, encoded: list[Encoded]) -> None:
        pipeline.feed_input("encoded", encoded)
        for name, array in graph.inputs(step, self._context.index).items():
            pipeline.feed_input(name, array)

    def _take(self, work: _Work) -> ExecutedStep:
        """The results of the first step in flight."""
        assert self._pipeline is not None
        while not self._started:  # fewer steps than the queue is deep: fill it up with what nobody wants
            self._feed(work)
            self._in_flight[-1] = None
        try:
            outputs = self._outputs(self._pipeline)
        except RuntimeError:
            # the pipeline is lost, and the error may be of a later step: find out, then start again behind this one
            behind = [later for later in list(self._in_flight)[1:] if later is not None]
            self._discard_pipeline()
            pixels = self._run_alone(work)
            for later in behind:
                self._feed(later)
        else:
            self._in_flight.popleft()
            if self._graph.ends == "batch":
                work.replacements.record()
                return self._hand_over(work.step, outputs)
            pixels = self._pixels(work.step, self._graph, [outputs])
        work.replacements.record()
        return self._mix_stage.finish(work.step, pixels)

    def _run_alone(self, work: _Work) -> Tensor:
        """The pixels of one step, with other samples in the place of those that DALI cannot decode.

        A few rows at a time, as an error takes the results of all that are decoded with it.
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
                    work.replacements.replace(row, Unusable("DALI cannot decode this window of it"))
                    work.encoded[row] = self._headers.checked(work.replacements, row, work.replacements.read(row))
                    pipeline = graph.build()
        return self._pixels(work.step, graph, decoded)

    def _outputs(self, pipeline: Pipeline) -> TensorList:
        if self._stream is None:
            outputs: TensorList = pipeline.outputs()[0]
            return outputs
        with torch.cuda.device(self._context.device):  # DALI orders its work before the stream on the current device
            outputs = pipeline.outputs(cuda_stream=self._stream)[0]
            return outputs

    def _hand_over(self, step: StepPlan, outputs: TensorList) -> ExecutedStep:
        """A finished batch, in memory of torch's."""
        images = self._copied([outputs], self._context.dtype)
        if self._context.mixes:
            images = images.flatten(0, 1)
        if self._context.config.channels_last:
            images = images.permute(0, 3, 1, 2)
        return ExecutedStep(step, images, self._context.tensors(step))

    def _pixels(self, step: StepPlan, graph: Graph, decoded: list[TensorList]) -> Tensor:
        """The batch for the mix stage, of what a graph gave for its rows: at once, or a few at a time."""
        if graph.ends == "window":
            return self._resized(step, decoded)
        if self._stream is None and len(decoded) == 1:  # read at once, while DALI's memory is valid
            return torch.from_numpy(np.asarray(decoded[0].as_tensor()))
        return self._copied(decoded, torch.uint8)

    def _copied(self, decoded: list[TensorList], dtype: torch.dtype) -> Tensor:
        """Rows that DALI has made, together and in memory of torch's.

        On a GPU they are copied on a stream of this executor's own, for which the consumer's stream waits: DALI's memory is free
        when the copy is done, whatever the consumer has still to do. Not by DLPack, whose deleter spins a core meanwhile.
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
        copied.record_stream(consumer)  # so that its memory is not used again while the consumer reads it
        return copied

    def _resized(self, step: StepPlan, decoded: list[TensorList]) -> Tensor:
        windows = [np.asarray(part[row]) for part in decoded for row in range(len(part))]
        images: list[Pixels] = [window[:0] for window in windows]

        def resize(row: int, window: Pixels) -> None:
            orientation = self._context.orientation(int(step.sample[row]))
            transform = self._context.config.transform
            images[row] = crop_and_resize(window, transform, window=None, orientation=orientation)

        job = RowJob[Pixels](len(windows), resize)
        self._resizers.add(job)
        self._resizers.start(job, enumerate(windows))
        job.wait()
        return self._mix_stage.gather(images, step.flip)

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
