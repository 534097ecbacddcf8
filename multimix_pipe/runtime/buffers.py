"""Host memory for batches, reused as soon as nothing refers to it, and never earlier.

A batch of 64 pairs at K = 5 takes 190 MB. Allocating that at every step costs more (page faults) than mixing it.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = mmap.PAGESIZE
"""Bytes."""

_HUGE = 4 * 2**20  # bytes from which on huge pages are asked for, as NumPy does


class _Lease:
    """The base object of an array handed out. It lives as long as any array or tensor that uses the memory."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory  # __array_interface__ is only an address, and keeps nothing alive
        self.__array_interface__: dict[str, Any] = memory.__array_interface__


class _Ticket(weakref.ref[_Lease]):
    """A weak reference to a lease, with the memory that was lent."""

    memory: NDArray[np.uint8]


def _allocate(size: int) -> NDArray[np.uint8]:
    """Map memory apart from the heap, which buffers of many sizes would fragment: it grew by 200 MB in a hundred epochs."""
    mapped = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, dtype=np.uint8)[:size]


class BufferPool:
    """A thread-safe pool of uint8 buffers.

    It keeps at most `spare` unused ones, and of these, if given, at most `spare_bytes` or as many bytes as are in use.
    """

    def __init__(self, spare: int = 4, spare_bytes: int | None = None) -> None:
        self._spare = spare
        self._spare_bytes = spare_bytes
        self._lock = threading.Lock()
        self._unused: list[NDArray[np.uint8]] = []  # the latest one returned is last
        self._out: set[_Ticket] = set()
        # A lease may be freed at any moment, even while this thread holds the lock. So its callback is `append` alone, which is
        # atomic and runs no Python code: an interrupt in a callback would be lost.
        self._returned: deque[_Ticket] = deque()

    def take(self, size: int, slack: int = 0) -> NDArray[np.uint8]:
        """Return an uninitialised uint8 array (size,), aligned to ALIGNMENT. Its buffer is at most twice as large.

        A new buffer has `slack` bytes more, so that it also fits somewhat larger arrays later.
        The buffer returns to the pool when the array and all its views are gone.
        """
        memory = self._find(size)
        if memory is None:
            memory = _allocate(size + slack)
        lease = _Lease(memory)
        ticket = _Ticket(lease, self._returned.append)
        ticket.memory = memory
        with self._lock:
            self._out.add(ticket)
        return np.asarray(lease)[:size]

    def _find(self, size: int) -> NDArray[np.uint8] | None:
        """Remove the smallest unused buffer that fits from the pool and return it, or None."""
        with self._lock:
            while self._returned:
                ticket = self._returned.popleft()
                self._out.discard(ticket)
                self._unused.append(ticket.memory)
            fitting = [i for i, memory in enumerate(self._unused) if size <= len(memory) <= 2 * size]
            best = min(fitting, key=lambda i: len(self._unused[i]), default=None)
            found = None if best is None else self._unused.pop(best)
            del self._unused[: -self._spare]
            if self._spare_bytes is not None:
                in_use = sum(len(ticket.memory) for ticket in self._out)
                surplus = sum(map(len, self._unused)) - max(self._spare_bytes, in_use)
                while surplus > 0:
                    surplus -= len(self._unused.pop(0))
            return found
