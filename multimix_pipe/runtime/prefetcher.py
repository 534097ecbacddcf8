"""Reads the encoded bytes of steps before they are needed.

A step's rows are read in chunks, sorted by shard. A chunk is one task that releases the GIL once for all of its reads. The size
of chunks and the number in flight follow the measured latency of a read: a few large chunks are best for a page cache, many
small ones for a disk or a network share.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.runtime.buffers import BufferPool
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.shards.cores import local_world_size

MAX_READS = 128
"""Chunks that a machine reads at once on the slowest storage; threads start as needed."""

MIN_READS, FIRST_READS = 4, 16
"""Chunks that are read at once from a page cache, and before anything has been measured: more only get into each other's way."""

MIN_ROWS, FIRST_ROWS, MAX_ROWS = 4, 16, 128
"""Rows per chunk; FIRST_ROWS until a latency has been measured."""

CHUNK_SECONDS = 0.032
"""How long a chunk may wait: so many rows are read one after the other."""

READS_PER_SECOND = 40_000
"""Target rate of reads; together with the latency it sets how many reads are in flight."""

MIN_STEPS = 4
"""Minimum number of steps to read ahead."""

MAX_CHUNK_BYTES = 16 * 2**20
MAX_BYTES_AHEAD = 512 * 2**20
"""Limit of the encoded bytes read ahead, beyond MIN_STEPS steps."""

_SLACK = 4  # buffers are a quarter larger than needed, so that they fit most later chunks
_SPARE_BYTES = 256 * 2**20  # unused memory that the pool keeps

Row = Encoded | Exception


def max_reads() -> int:
    """Return how many chunks this process may read at once: its share among the local ranks, at least 16."""
    return max(16, MAX_READS // local_world_size())


class Pacing:
    """Sets the rows per chunk and the rows in flight by the measured latency of reads."""

    def __init__(self) -> None:
        self._latencies: deque[float] = deque(maxlen=8)

    def note(self, seconds: float, rows: int) -> None:
        """Record that reading a chunk of `rows` rows took `seconds`."""
        self._latencies.append(seconds / rows)

    @property
    def wait(self) -> float:
        """Seconds per read: the minimum over the last chunks, because a busy machine makes reads look slow."""
        return min(self._latencies, default=0.0)

    @property
    def rows(self) -> int:
        """Rows per chunk."""
        return FIRST_ROWS if not self.wait else min(max(int(CHUNK_SECONDS / self.wait), MIN_ROWS), MAX_ROWS)

    @property
    def reads(self) -> int:
        """Chunks to read at once."""
        return max(self._waiting_reads, MIN_READS) if self.wait else FIRST_READS

    @property
    def rows_ahead(self) -> int:
        """Rows to have under way or read."""
        return self._waiting_reads * self.rows

    @property
    def _waiting_reads(self) -> int:
        return min(math.ceil(self.wait * READS_PER_SECOND), max_reads())


class Readers:
    """Threads that read chunks in the order in which they are asked for, as many at once as `Pacing.reads` says."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing
        self._threads = ThreadPoolExecutor(max_reads(), thread_name_prefix="multimix-read")
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[list[Row]], Callable[[], list[Row]]]] = deque()
        self._busy = 0

    def submit(self, read: Callable[[], list[Row]]) -> Future[list[Row]]:
        """Read a chunk, after those that were asked for before."""
        task: Future[list[Row]] = Future()
        self._waiting.append((task, read))
        self._start()
        return task

    def close(self) -> None:
        """Cancel what has not begun, and wait for the rest."""
        with self._lock:
            for task, _ in self._waiting:
                task.cancel()
        self._threads.shutdown()

    def _start(self) -> None:
        with self._lock:
            needed = min(len(self._waiting), self._pacing.reads - self._busy)
            self._busy += max(needed, 0)
        for _ in range(needed):
            self._threads.submit(self._work)

    def _work(self) -> None:
        while (found := self._next()) is not None:
            task, read = found
            if task.set_running_or_notify_cancel():
                try:
                    task.set_result(read())
                except BaseException as error:
                    task.set_exception(error)
            del task, read, found  # what was read belongs to the step alone
            self._start()  # of slow storage, once it is known to be slow

    def _next(self) -> tuple[Future[list[Row]], Callable[[], list[Row]]] | None:
        with self._lock:
            if self._waiting and self._busy <= self._pacing.reads:
                return self._waiting.popleft()
            self._busy -= 1
            return None


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows of a step that one task reads."""

    rows: list[int]
    task: Future[list[Row]]
    """Its result has, for each of `rows`, the encoded bytes or the error raised by reading them."""


@dataclass(frozen=True, eq=False)
class ReadStep:
    """A step whose rows are being read."""

    replacements: Replacements
    chunks: list[Chunk]

    def rows(self) -> list[Encoded]:
        """Wait for all rows and return their bytes in order. If rows failed, raise the error of the first one."""
        read: list[Row] = [np.empty(0, dtype=np.uint8)] * len(self.replacements.step)
        for chunk in self.chunks:
            for row, found in zip(chunk.rows, chunk.task.result(), strict=True):
                read[row] = found
        return [usable(row) for row in read]

    def cancel(self) -> None:
        """Cancel the chunks that have not been started."""
        for chunk in self.chunks:
            chunk.task.cancel()


def usable(row: Row) -> Encoded:
    """Return a row's bytes, or raise its error."""
    if isinstance(row, Exception):
        raise row
    return row


class Prefetcher:
    """Reads the rows of steps ahead in threads, into reused memory."""

    def __init__(
        self, context: LoaderContext, check: Callable[[Replacements, int, Encoded | Unusable], Encoded]
    ) -> None:
        """`check(replacements, row, encoded)` checks a row's bytes and returns them, or those of a replacement."""
        self._context = context
        self._check = check
        self._pacing = Pacing()
        self._readers = Readers(self._pacing)
        self._buffers = BufferPool(spare=MAX_READS, spare_bytes=_SPARE_BYTES)
        self._mean_size = float(context.index.size.mean()) if len(context.index) else 0.0

    def read(self, steps: Iterable[StepPlan]) -> Generator[ReadStep, None, None]:
        """Yield each step while it is being read; reads of later steps are in flight by then."""
        remaining, ahead = iter(steps), deque[ReadStep]()
        try:
            for most in count(1):  # the first step is under way before the next ones are planned
                while len(ahead) < min(self._steps_ahead(), most) and (step := next(remaining, None)) is not None:
                    ahead.append(self._start(step, FIRST_ROWS if most == 1 else MAX_ROWS))
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            for unread in ahead:
                unread.cancel()

    def close(self) -> None:
        """Stop the threads once their current reads are done."""
        with self._context.reader.stopping():
            self._readers.close()

    def _steps_ahead(self) -> int:
        batch_size = self._context.config.batch_size
        rows = min(self._pacing.rows_ahead, MAX_BYTES_AHEAD / max(1.0, self._mean_size))
        return max(MIN_STEPS, math.ceil(rows / batch_size) + 1)

    def _start(self, step: StepPlan, rows: int) -> ReadStep:
        """Read a step, in chunks of at most `rows` rows."""
        replacements = self._context.replacements(step)
        order = np.argsort(step.sample, kind="stable")
        chunks = [
            Chunk(rows.tolist(), self._readers.submit(partial(self._read_chunk, replacements, rows)))
            for rows in self._cut(order, self._context.index.size[step.sample[order]], min(rows, self._pacing.rows))
        ]
        return ReadStep(replacements, chunks)

    def _cut(self, order: NDArray[np.int64], size: NDArray[np.int64], rows: int) -> Iterator[NDArray[np.int64]]:
        """Chunks of at most `rows` rows in the order of the shards, of which none can have more than it has rows."""
        rows = min(rows, self._context.reader.max_shards)
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
        memory = self._buffers.take(needed + needed // _SLACK)
        complete = np.zeros(len(rows), dtype=np.bool_)
        if sound.any():
            there[sound], seconds = self._context.reader.read_rows(sample[sound], start[sound], memory)
            if self._context.reader.stopped:
                raise CancelledError
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
