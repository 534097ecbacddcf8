"""One iteration over a loader, and how loaders end with the interpreter."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (see `_close_all`)
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import NoReturn, Protocol

from multimix_pipe.batch import Batch
from multimix_pipe.errors import MultiMixError


class Closeable(Protocol):
    """A loader, as far as its end goes."""

    def close(self) -> None:
        """Stop its threads."""
        ...


_alive: weakref.WeakSet[Closeable] = weakref.WeakSet()
_exiting = threading.Event()


class Epoch(Iterator[Batch]):
    """One iteration over a loader. A newer one ends it, and it says so: to stop in silence would lose data."""

    def __init__(
        self, batches: Generator[Batch, None, None], lock: threading.RLock, check_process: Callable[[], None]
    ) -> None:
        """`lock` is held while a batch is made; `check_process` raises in a forked child."""
        self._batches = batches
        self._lock = lock
        self._check_process = check_process
        self._done = False
        self._superseded = False
        self._advancing = False

    def __next__(self) -> Batch:
        self._check_process()  # before anything waits for threads that a forked child does not have
        with self._lock:
            if not _exiting.is_set():
                return self._advance()
        _refuse_at_exit()

    def _advance(self) -> Batch:
        if self._superseded:
            raise MultiMixError(
                "a loader runs one epoch at a time; this iteration was ended by a newer iter(loader), or by set_epoch, "
                "load_state_dict or close. To iterate twice at once, open a second loader"
            )
        self._advancing = True
        try:
            return next(self._batches)
        except BaseException:
            self._done = True
            raise
        finally:
            self._advancing = False

    def end(self) -> None:
        """Drop what runs ahead; a further `next` is an error unless the epoch was over."""
        if self._advancing:  # only this thread can be within `next`: the lock keeps the others out
            raise MultiMixError(
                "a loader cannot be closed, or begin anew, while the same thread waits for its next batch, as in a signal "
                "handler. Set a flag there, and close after the step"
            )
        self._batches.close()
        self._superseded = not self._done


def close_at_exit(loader: Closeable) -> None:
    """Close a loader, if it still is there, as the interpreter ends."""
    _alive.add(loader)


def _close_all() -> None:
    """As the interpreter ends, before it ends the threads that loaders need: drop what runs ahead, and let nothing start."""
    _exiting.set()
    for loader in list(_alive):
        loader.close()


# threads are ended before `atexit` runs. The last registered is the first to run: before concurrent.futures' own, imported above
getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _refuse_at_exit() -> NoReturn:
    while threading.current_thread().daemon:  # it ends with the process, in silence
        threading.Event().wait()
    raise MultiMixError(
        "a loader is closed when the main thread has ended, and this thread still iterates over it. Join it in the main thread"
    )
