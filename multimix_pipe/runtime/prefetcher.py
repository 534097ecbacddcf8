"""Reads the encoded bytes of steps before they are needed.

A step's rows are read in chunks, sorted by shard. A chunk is one task that releases the GIL once for all of its reads. The size
of chunks and the number in flight follow the measured latency of a read: a few large chunks are best for a page cache, many
small ones for a disk or a network share.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.runtime.buffers import BufferPool
from multimix_pipe.runtime.context import LoaderContext

MAX_READS = 128
"""Chunks that a machine reads at once on the slowest storage; threads start as needed."""

MIN_ROWS, FIRST_ROWS, MAX_ROWS = 4, 16, 128
"""Rows per chunk; FIRST_ROWS until a latency has been measured."""

CHUNK_SECONDS = 0.032
"""Target duration of a chunk, whose rows are read one after another."""

READS_PER_SECOND = 40_000
"""Target rate of reads; together with the latency it sets how many reads are in flight."""

MIN_STEPS = 2
"""Minimum number of steps to read ahead."""

MAX_CHUNK_BYTES = 16 * 2**20
MAX_BYTES_AHEAD = 512 * 2**20
"""Target for the encoded bytes read ahead, beyond MIN_STEPS steps."""

_SLACK = 4  # buffers are a quarter larger than needed, so that they fit most later chunks
_SPARE_BYTES = 32 * 2**20

Row = Encoded | Exception


def max_reads(processes: int) -> int:
    """Return how many chunks this process may read at once: its share among the `processes` of its machine, at least 16."""
    return max(16, MAX_READS // processes)


class Pacing:
    """Sets the rows per chunk and the rows in flight by the measured latency of reads."""

    def __init__(self, reads: int = MAX_READS) -> None:
        """`reads` is the largest number of chunks to read at once."""
        self._reads = reads
        self._latencies: deque[float] = deque(maxlen=16)
        self.wait = 0.0
        """Seconds per read: the lower quartile of the last chunks. A busy machine makes reads look slow, a cached one fast."""

    def note(self, seconds: float, rows: int) -> None:
        """Record that reading a chunk of `rows` rows took `seconds`."""
        self._latencies.append(seconds / rows)
        latencies = sorted(self._latencies)
        self.wait = latencies[len(latencies) // 4]

    @property
    def rows(self) -> int:
        """Rows per chunk."""
        wait = self.wait
        return FIRST_ROWS if not wait else min(max(int(CHUNK_SECONDS / wait), MIN_ROWS), MAX_ROWS)

    @property
    def rows_ahead(self) -> int:
        """Rows to read ahead: in flight, or read and not yet used."""
        return min(math.ceil(self.wait * READS_PER_SECOND), self._reads) * self.rows


@dataclass(frozen=True, eq=False)
class ReadStep:
    """A step whose rows are being read."""

    replacements: Replacements
    chunks: dict[Future[list[Row]], list[int]]
    """Rows by the task that reads them. Its result has, for each row, the encoded bytes or the error raised by reading them."""

    def rows(self) -> list[Encoded]:
        """Wait for all rows and return their bytes in order. If rows failed, raise the error of the first one."""
        read: list[Row] = [np.empty(0, dtype=np.uint8)] * len(self.replacements.step)
        for task, rows in self.chunks.items():
            for row, found in zip(rows, task.result(), strict=True):
                read[row] = found
        return [usable(row) for row in read]

    def cancel(self) -> None:
        """Cancel the chunks that have not been started."""
        for task in list(self.chunks):
            task.cancel()


def usable(row: Row) -> Encoded:
    """Return a row's bytes, or raise its error."""
    if isinstance(row, Exception):
        raise row
    return row


def accept(replacements: Replacements, row: int, encoded: Encoded | Unusable) -> Encoded:
    """Accept any bytes that could be read: decoding shows whether they are valid."""
    return replacements.use(row, encoded, lambda row, encoded: encoded)


class Prefetcher:
    """Reads the rows of steps ahead in threads, into reused memory."""

    def __init__(
        self, context: LoaderContext, check: Callable[[Replacements, int, Encoded | Unusable], Encoded] = accept
    ) -> None:
        """`check(replacements, row, encoded)` checks a row's bytes and returns them, or those of a replacement."""
        self._context = context
        self._check = check
        reads = max_reads(context.local_world_size)
        self._pacing = Pacing(reads)
        self._threads = ThreadPoolExecutor(reads, thread_name_prefix="multimix-read")
        self._buffers = BufferPool(spare=MAX_READS, spare_bytes=_SPARE_BYTES)
        self._mean_size = float(context.index.size.mean()) if len(context.index) else 0.0

    def read(self, steps: Iterable[StepPlan]) -> Generator[ReadStep, None, None]:
        """Yield each step while it is being read; reads of later steps are in flight by then."""
        remaining, ahead = iter(steps), deque[ReadStep]()
        try:
            for limit in count(1):  # the first step is handed out before the second one is planned
                while len(ahead) < min(self._steps_ahead(), limit) and (step := next(remaining, None)) is not None:
                    ahead.append(self._start(step, FIRST_ROWS if limit == 1 else MAX_ROWS))
                if not ahead:
                    return
                yield ahead.popleft()
                if limit == 1:
                    time.sleep(0)  # lets the threads start to read before this thread plans the next steps
        finally:
            for unread in ahead:
                unread.cancel()

    def close(self) -> None:
        """Stop the threads once their current reads are done."""
        with self._context.reader.stopping():
            self._threads.shutdown(cancel_futures=True)

    def _steps_ahead(self) -> int:
        batch_size = self._context.config.batch_size
        rows = min(self._pacing.rows_ahead, MAX_BYTES_AHEAD / max(1.0, self._mean_size))
        return max(MIN_STEPS, math.ceil(rows / batch_size) + 1)

    def _start(self, step: StepPlan, max_rows: int) -> ReadStep:
        """Start to read a step, in chunks of at most `max_rows` rows."""
        read = ReadStep(self._context.replacements(step), {})
        try:
            for rows in self._split(step, min(max_rows, self._pacing.rows)):
                read.chunks[self._threads.submit(self._read_chunk, read.replacements, rows)] = rows.tolist()
        except BaseException:
            read.cancel()
            raise
        return read

    def _split(self, step: StepPlan, rows: int) -> Iterator[NDArray[np.int64]]:
        """Split a step's rows, sorted by shard, into chunks of at most `rows` rows.

        They never have more rows than shards may be open, so that a chunk's shards can be open all at once.
        """
        rows = min(rows, self._context.reader.max_shards)
        order = np.argsort(step.sample, kind="stable")
        size = self._context.index.size[step.sample[order]]
        for first in range(0, len(order), rows):
            chunk = slice(first, first + rows)
            end_of_bytes = np.cumsum(size[chunk]) // MAX_CHUNK_BYTES
            yield from np.split(order[chunk], np.flatnonzero(np.diff(end_of_bytes)) + 1)

    def _read_chunk(self, replacements: Replacements, rows: NDArray[np.int64]) -> list[Row]:
        try:
            return self._read_together(replacements, rows)
        except Exception as error:  # out of memory, for example
            return [error] * len(rows)

    def _read_together(self, replacements: Replacements, rows: NDArray[np.int64]) -> list[Row]:
        index, sample = self._context.index, replacements.step.sample[rows]
        sound = index.problem[sample] == 0
        size = np.where(sound, index.size[sample], 0)
        start = np.cumsum(size) - size
        needed = int(size.sum())
        memory = self._buffers.take(needed, needed // _SLACK)
        complete = np.zeros(len(rows), dtype=np.bool_)
        if sound.any():
            complete[sound], seconds = self._context.reader.read_rows(sample[sound], start[sound], memory)
            if self._context.reader.stopped:
                return [CancelledError()] * len(rows)
            if complete[sound].all():
                self._pacing.note(seconds, int(sound.sum()))
        read: list[Row] = []
        parts = zip(rows.tolist(), start.tolist(), size.tolist(), complete.tolist(), strict=True)
        for row, first, length, is_complete in parts:
            try:
                encoded = memory[first : first + length] if is_complete else replacements.read(row)
                read.append(self._check(replacements, row, encoded))
            except Exception as error:  # raised when the row is requested
                read.append(error)
        return read
