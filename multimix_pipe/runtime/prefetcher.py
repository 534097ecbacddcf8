"""Reads the encoded bytes of steps before they are needed.

A step's rows are read in chunks, in the order of the shards. A chunk is one task, which leaves the interpreter's lock once for
all of its reads. How large chunks are, and how many are under way, follows the wait of a read as it is measured: a page cache is
best served by a few large ones, a disk or a network share by many small ones.
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
"""Chunks that a machine reads at once on the slowest storage; threads start as they are needed."""

MIN_READS, FIRST_READS = 4, 16
"""Chunks that are read at once from a page cache, and before anything has been measured: more only get into each other's way."""

MIN_ROWS, FIRST_ROWS, MAX_ROWS = 4, 16, 128
"""Rows of a chunk; FIRST_ROWS before anything has been measured."""

CHUNK_SECONDS = 0.032
"""How long a chunk may wait: so many rows are read one after the other."""

READS_PER_SECOND = 40_000
"""The rate that reading ahead aims at: as many reads are under way as wait at that rate."""

MIN_STEPS = 4
"""Steps that are read ahead at least."""

MAX_CHUNK_BYTES = 16 * 2**20
MAX_BYTES_AHEAD = 512 * 2**20
"""Encoded bytes read ahead, beyond MIN_STEPS steps."""

_SLACK = 4  # a quarter more memory than needed: it then fits most of the chunks that come after
_SPARE_BYTES = 256 * 2**20  # of unused memory that is kept

Row = Encoded | Exception


def max_reads() -> int:
    """Chunks that this process reads at once at most: its share among the local ranks, at least 16."""
    return max(16, MAX_READS // local_world_size())


class Pacing:
    """How many rows a chunk has and how many are under way, from the waits that were measured."""

    def __init__(self) -> None:
        self._waits: deque[float] = deque(maxlen=8)

    def note(self, seconds: float, rows: int) -> None:
        """Note how long a chunk took."""
        self._waits.append(seconds / rows)

    @property
    def wait(self) -> float:
        """Seconds that a read takes: the least of the last chunks, as a busy machine makes reads look slow."""
        return min(self._waits, default=0.0)

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
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
    """Some rows of a step that one task reads."""

    rows: list[int]
    task: Future[list[Row]]
    """What was read for each of `rows`: bytes, or the error that reading them raised."""


@dataclass(frozen=True, eq=False)
class ReadStep:
    """A step whose rows are being read."""

    replacements: Replacements
    chunks: list[Chunk]

    def rows(self) -> list[Encoded]:
        """All rows, in order; of several that failed, the first one raises."""
        read: list[Row] = [np.empty(0, dtype=np.uint8)] * len(self.replacements.step)
        for chunk in self.chunks:
            for row, found in zip(chunk.rows, chunk.task.result(), strict=True):
                read[row] = found
        return [usable(row) for row in read]

    def cancel(self) -> None:
        """Do not read what has not been begun."""
        for chunk in self.chunks:
            chunk.task.cancel()


def usable(row: Row) -> Encoded:
    """A row's bytes; raises its error."""
    if isinstance(row, Exception):
        raise row
    return row


class Prefetcher:
    """Threads that read the rows of steps, into memory that is reused."""

    def __init__(
        self, context: LoaderContext, check: Callable[[Replacements, int, Encoded | Unusable], Encoded]
    ) -> None:
        """`check(replacements, row, encoded)`: a row's bytes once they have been checked, or those of a replacement."""
        self._context = context
        self._check = check
        self._pacing = Pacing()
        self._readers = Readers(self._pacing)
        self._buffers = BufferPool(spare=MAX_READS, spare_bytes=_SPARE_BYTES)
        self._mean_size = float(context.index.size.mean()) if len(context.index) else 0.0

    def read(self, steps: Iterable[StepPlan]) -> Generator[ReadStep, None, None]:
        """Yield each step while it is being read, with those after it under way."""
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
        """Stop the threads, after the reads that they are at."""
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
        except Exception as error:  # want of memory, say
            return [error] * len(rows)

    def _read_together(self, replacements: Replacements, rows: NDArray[np.int64]) -> list[Row]:
        index, sample = self._context.index, replacements.step.sample[rows]
        sound = index.problem[sample] == 0
        size = np.where(sound, index.size[sample], 0)
        start = np.cumsum(size) - size
        needed = int(size.sum())
        memory = self._buffers.take(needed + needed // _SLACK)
        there = np.zeros(len(rows), dtype=np.bool_)
        if sound.any():
            there[sound], seconds = self._context.reader.read_rows(sample[sound], start[sound], memory)
            if self._context.reader.stopped:
                raise CancelledError
            self._pacing.note(seconds, int(sound.sum()))
        read: list[Row] = []
        for row, first, length, whole in zip(rows.tolist(), start.tolist(), size.tolist(), there.tolist(), strict=True):
            try:
                encoded = memory[first : first + length] if whole else replacements.read(row)
                read.append(self._check(replacements, row, encoded))
            except Exception as error:  # raised where the row is asked for
                read.append(error)
        return read
