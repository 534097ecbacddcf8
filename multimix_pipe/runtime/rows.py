"""Threads that work on the rows of steps, with as little Python for each row as there can be."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RowJob(Generic[Item]):
    """The rows of one step, on which several threads work."""

    def __init__(self, rows: int, work: Callable[[int, Item], object]) -> None:
        """`work(row, item)` is done for each of `rows` rows, once its item is there."""
        self._work = work
        self._left = rows
        self._errors: dict[int, BaseException] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False

    def drain(self, items: deque[tuple[int, Item]]) -> None:
        """Work on items until none is left: several threads may drain the same ones."""
        finished = 0
        while not self._cancelled:
            try:
                row, item = items.popleft()
            except IndexError:
                break
            try:
                self._work(row, item)
            except BaseException as error:
                self._errors[row] = error
            finished += 1
        if finished:
            with self._lock:
                self._left -= finished
                if not self._left:
                    self._done.set()

    def cancel(self) -> None:
        """Begin no further row; who waits is told by CancelledError."""
        self._cancelled = True
        self._done.set()

    def wait(self) -> None:
        """Wait until all rows are done; of several that failed, the first raises."""
        self._done.wait()
        if self._cancelled:
            raise CancelledError
        if self._errors:
            raise self._errors[min(self._errors)]


class RowWorkers:
    """Threads that drain jobs, in the order in which their items arrive."""

    def __init__(self, threads: int, name: str) -> None:
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def start(self, job: RowJob[Item], items: Iterable[tuple[int, Item]]) -> None:
        """Let threads work on some rows of a job."""
        todo = deque(items)
        for _ in range(min(self._count, len(todo))):
            self._threads.submit(job.drain, todo)

    def close(self) -> None:
        """Stop the threads, after the rows that they are at."""
        self._threads.shutdown(cancel_futures=True)
