"""Worker threads for the rows of steps, with as little Python per row as possible."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from multimix_pipe.runtime.stats import ThreadTime

Item = TypeVar("Item")


class RowJob(Generic[Item]):
    """The rows of one step, which several threads process."""

    def __init__(self, rows: int, work: Callable[[int, Item], object]) -> None:
        """`work(row, item)` is called for each of `rows` rows, once its item is available."""
        self.todo: deque[tuple[int, Item]] = deque()
        """Rows whose items are available and that no thread has taken."""
        self._work = work
        self._left = rows
        self._errors: dict[int, BaseException] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False

    def do(self, row: int, item: Item) -> bool:
        """Process a row. Returns whether it was the last one to be done."""
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

    def fail(self, error: BaseException) -> None:
        """Make `wait` raise an error that is not that of a row."""
        self._errors[-1] = error
        self._done.set()

    def cancel(self) -> None:
        """Start no further rows; `wait` then raises CancelledError."""
        self._cancelled = True
        self.todo.clear()
        self._done.set()

    def wait(self) -> None:
        """Wait until all rows are done. Raises the error of the lowest row that failed."""
        self._done.wait()
        if self._cancelled:
            raise CancelledError
        if self._errors:
            raise self._errors[min(self._errors)]


class RowWorkers:
    """Threads that process jobs: each takes a row of the first job, in the order of `add`, that has one available."""

    def __init__(self, threads: int, name: str) -> None:
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._jobs: list[RowJob[Any]] = []  # replaced, never modified: threads iterate without a lock
        self.time = ThreadTime()  # of the threads in `_work`
        self._lock = threading.Lock()

    def add(self, job: RowJob[Item]) -> None:
        """Add a job behind the earlier ones."""
        with self._lock:
            self._jobs = [*self._jobs, job]

    def start(self, job: RowJob[Item], items: Iterable[tuple[int, Item]]) -> None:
        """Make rows of an added job available to the threads."""
        rows = list(items)
        job.todo.extend(rows)
        with self._lock:
            more = min(self._count - self.time.active, len(rows))
            self.time.change(more)
        for submitted in range(more):
            try:
                self._threads.submit(self._work)
            except BaseException:
                with self._lock:
                    self.time.change(submitted - more)
                raise

    def remove(self, job: RowJob[Item]) -> None:
        """Remove a job."""
        with self._lock:
            self._jobs = [other for other in self._jobs if other is not job]

    def close(self) -> None:
        """Cancel all jobs, and stop the threads once their current rows are done."""
        for job in self._jobs:
            job.cancel()
        self._threads.shutdown(cancel_futures=True)

    def _work(self) -> None:
        while True:
            found = self._next()
            if found is None:
                with self._lock:  # rows that are started from here on get a new thread
                    found = self._next()
                    if found is None:
                        self.time.change(-1)
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
