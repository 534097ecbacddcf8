"""Reads the encoded bytes of steps before they are needed, many requests at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.buffers import BufferPool
from multimix_pipe.runtime.context import LoaderContext

READERS = 16
"""Threads that read: a disk or a network share answers that many requests in the time of one."""

_ROWS = 4  # of a step that one task reads: enough to outweigh what a task costs
_SLACK = 4  # a quarter more memory than needed: it then fits most of the reads that come after
_SPARE = 64  # tasks whose memory is kept

Memory = NDArray[np.uint8]
Read = TypeVar("Read")


@dataclass(frozen=True, eq=False)
class PendingReads(Generic[Read]):
    """A step whose rows are being read."""

    _tasks: list[Future[list[Read]]]
    _place: list[tuple[int, int]]  # of each row: its task, and where in the task's result

    def row(self, row: int) -> Read:
        """What was read for a row, once it is there; raises what reading it raised."""
        task, place = self._place[row]
        return self._tasks[task].result()[place]

    def rows(self) -> list[Read]:
        """All rows; of several that failed, the first in the order of the shards raises."""
        read = [task.result() for task in self._tasks]
        return [read[task][place] for task, place in self._place]

    def cancel(self) -> None:
        """Do not read what has not been begun."""
        for task in self._tasks:
            task.cancel()


class Prefetcher:
    """Threads that read rows of steps, into memory that is reused."""

    def __init__(self, context: LoaderContext) -> None:
        self._context = context
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="multimix-read")
        self._buffers = BufferPool(spare=_SPARE)

    def start(self, step: StepPlan, read_row: Callable[[int, Memory], Read]) -> PendingReads[Read]:
        """Begin to read a step: `read_row(row, memory)` for each of its rows, in several threads and in the order of the shards.

        `memory` has the size of the row's sample; it is empty for one that indexing found a problem with. Neighbours in a file
        are read one after the other.
        """
        order = np.argsort(step.sample, kind="stable")
        index = self._context.index
        sizes = np.where(index.problem[step.sample] == 0, index.size[step.sample], 0)
        parts = [order[first : first + _ROWS] for first in range(0, len(order), _ROWS)]
        place = {int(row): (task, at) for task, rows in enumerate(parts) for at, row in enumerate(rows)}
        tasks = [self._threads.submit(self._read_rows, rows.tolist(), sizes[rows].tolist(), read_row) for rows in parts]
        return PendingReads(tasks, [place[row] for row in range(len(order))])

    def _read_rows(self, rows: list[int], sizes: list[int], read_row: Callable[[int, Memory], Read]) -> list[Read]:
        needed = sum(sizes)
        memory = self._buffers.take(needed + needed // _SLACK)
        starts = [0, *accumulate(sizes)]
        return [
            read_row(row, memory[start : start + size]) for row, start, size in zip(rows, starts, sizes, strict=False)
        ]

    def close(self) -> None:
        """Stop the threads, after the rows that they are at."""
        self._threads.shutdown(cancel_futures=True)
