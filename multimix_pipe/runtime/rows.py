"""Threads that work on the rows of steps, with as little Python for each row as there can be."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class RowJob(Generic[Item]):
    """The rows of one step, on which several threads work."""

    def __init__(self, rows: int, work: Callable[[int, Item], object]) -> None:
        """`work(row, item)` is called for each of `rows` rows, once its item is there."""
        self.todo: deque[tuple[int, Item]] = deque()
        """Rows whose items are there, and that no thread works on yet."""
        self._work = work
        self._left = rows
        self._errors: dict[int, BaseException] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False

    def do(self, row: int, item: Item) -> bool:
        """Work on a row, and return whether it was the last one."""
        try:
            if not self._cancelled:
                self._work(row, item)
        except BaseException as error:
            self._errors[row] = error
        with self._lock:
            self._left -= 1
            done = not self._left
        if done:
            self._done.set()
        return done

    def cancel(self) -> None:
        """Start no further row; waiting raises CancelledError."""
        self._cancelled = True
        self.todo.clear()
        self._done.set()

    def wait(self) -> None:
        """Wait until all rows are done. Raises the error of the first row that failed."""
        self._done.wait()
        if self._cancelled:
            raise CancelledError
        if self._errors:
            raise self._errors[min(self._errors)]


class RowWorkers:
    """Threads that work on jobs: always on the first one, in the order of `add`, of which a row can be worked on."""

    def __init__(self, threads: int, name: str) -> None:
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._jobs: list[RowJob[Any]] = []  # replaced as a whole, so that threads need no lock to go through it
        self._active = 0  # threads that look for rows
        self._lock = threading.Lock()

    def add(self, job: RowJob[Item]) -> None:
        """Take a job, behind those that were added before."""
        with self._lock:
            self._jobs = [*self._jobs, job]

    def start(self, job: RowJob[Item], items: Iterable[tuple[int, Item]]) -> None:
        """Let threads work on some rows of a job that was added."""
        rows = list(items)
        job.todo.extend(rows)
        with self._lock:
            more = min(self._count - self._active, len(rows))
            self._active += more
        for _ in range(more):
            self._threads.submit(self._work)

    def remove(self, job: RowJob[Item]) -> None:
        """Forget a job."""
        with self._lock:
            self._jobs = [other for other in self._jobs if other is not job]

    def close(self) -> None:
        """Stop the threads, after the rows that they are at."""
        self._threads.shutdown(cancel_futures=True)

    def _work(self) -> None:
        while True:
            found = self._next()
            if found is None:
                with self._lock:  # what is started from here on gets a thread of its own
                    found = self._next()
                    if found is None:
                        self._active -= 1
                        return
            job, row, item = found
            if job.do(row, item):
                self.remove(job)

    def _next(self) -> tuple[RowJob[Any], int, Any] | None:
        for job in self._jobs:
            try:
                return job, *job.todo.popleft()
            except IndexError:
                continue
        return None
