"""Reads the encoded bytes of steps before they are needed, many requests at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from multimix_pipe.plan import StepPlan

READERS = 16
"""Threads that read: a disk or a network share answers that many requests in the time of one."""

_ROWS = 4  # of a step that one task reads: enough to outweigh what a task costs

Read = TypeVar("Read")


@dataclass(frozen=True, eq=False)
class Reading(Generic[Read]):
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


class ReadAhead:
    """Threads that read rows of steps."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="multimix-read")

    def start(self, step: StepPlan, read_row: Callable[[int], Read]) -> Reading[Read]:
        """Begin to read a step: `read_row(row)` for each of its rows, from several threads, in the order of the shards.

        Neighbours in a file are so read one after the other.
        """
        order = np.argsort(step.sample, kind="stable").tolist()
        parts = [order[first : first + _ROWS] for first in range(0, len(order), _ROWS)]
        place = {row: (task, at) for task, rows in enumerate(parts) for at, row in enumerate(rows)}
        tasks = [self._threads.submit(lambda rows: [read_row(row) for row in rows], rows) for rows in parts]
        return Reading(tasks, [place[row] for row in range(len(order))])

    def close(self) -> None:
        """Stop the threads, after the rows that they are at."""
        self._threads.shutdown(cancel_futures=True)
