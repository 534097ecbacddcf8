"""One iteration over a loader, and how loaders are closed at interpreter exit."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (registers its exit handler before ours: see the call below)
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import NoReturn, Protocol

from multimix_pipe.batch import Batch
from multimix_pipe.errors import MultiMixError


class Closeable(Protocol):
    """The part of a loader that `close_at_exit` needs."""

    def close(self) -> None:
        """Stop the loader's threads."""
        ...


_alive: weakref.WeakSet[Closeable] = weakref.WeakSet()
_exiting = threading.Event()
_parked: weakref.WeakKeyDictionary[threading.Thread, threading.Event] = weakref.WeakKeyDictionary()
"""For each thread that has begun an epoch: whether it waits in `_refuse_at_exit`."""
_PATIENCE = 0.5  # seconds, for all of them together: some may never ask for another batch


class Epoch(Iterator[Batch]):
    """One iteration over a loader, bound to an epoch by its first `next`.

    Once a newer one has ended it, `next` raises: stopping silently would lose batches.
    """

    def __init__(
        self,
        bind: Callable[[Epoch], Generator[Batch, None, None]],
        lock: threading.RLock,
        check_process: Callable[[], None],
    ) -> None:
        """`bind(epoch)` ends the previous iteration and returns the batches of this one.

        `lock` is held while a batch is made; `check_process` raises in a forked child.
        """
        self._bind = bind
        self._lock = lock
        self._check_process = check_process
        self._batches: Generator[Batch, None, None] | None = None
        self._done = False
        self._superseded = False
        self._advancing = False

    def __next__(self) -> Batch:
        self._check_process()  # first, because a forked child would wait for threads that it does not have
        with self._lock:
            if not _exiting.is_set():
                return self._advance()
        _refuse_at_exit()

    def _advance(self) -> Batch:
        if self._superseded:
            raise MultiMixError(
                "a loader runs one epoch at a time; this iteration was ended by the first batch of a newer one, or by set_epoch, "
                "load_state_dict or close. To iterate twice at once, open a second loader"
            )
        if self._batches is None:
            self._batches = self._bind(self)
            _parked[threading.current_thread()] = threading.Event()
        self._advancing = True
        try:
            return next(self._batches)
        except BaseException:
            self._done = True
            raise
        finally:
            self._advancing = False

    def end(self, *, done: bool) -> None:
        """Discard the batches prepared ahead. A further `next` is an error unless the epoch was over.

        It was over if an iteration has noticed, or if `done`: the last batch was handed out.
        """
        if self._advancing:  # by this very thread: the lock keeps other threads out
            raise MultiMixError(
                "a loader cannot be closed or restarted while the same thread waits for its next batch, for example in a "
                "signal handler. Set a flag in the handler, and close the loader after the step"
            )
        if self._batches is not None:
            self._batches.close()
        self._superseded = not (self._done or done)


def close_at_exit(loader: Closeable) -> None:
    """Close `loader` when the interpreter exits, unless it has been garbage-collected by then."""
    _alive.add(loader)


def _close_all() -> None:
    """Close all loaders and let no thread continue to iterate; runs while the threads that loaders need still exist."""
    _exiting.set()
    for loader in list(_alive):
        loader.close()
    # a daemon thread that the interpreter ends while torch frees its last batch would abort the process
    deadline = time.monotonic() + _PATIENCE
    for thread, parked in list(_parked.items()):
        if thread.daemon and thread.is_alive():
            parked.wait(timeout=max(0.0, deadline - time.monotonic()))


# `atexit` would be too late: threads are joined before it runs. These handlers run before that, the last registered one first;
# concurrent.futures, imported above, has registered its own already, so ours runs before its worker threads end.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _refuse_at_exit() -> NoReturn:
    thread = threading.current_thread()
    while thread.daemon:  # wait here: a daemon thread ends silently with the process
        _parked.get(thread, _exiting).set()
        threading.Event().wait()
    raise MultiMixError(
        "the loader was closed because the main thread ended, but this thread still iterates over it. Join this thread in the "
        "main thread"
    )
