"""Host memory for batches that is reused once nobody refers to it, and never before.

A batch of 64 pairs at K = 5 is 190 MB: to allocate that anew each step costs more (page faults) than to mix it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes: a cache line, and a multiple of any vector store."""


class _Lease:
    """What an array handed out holds on to; its end is the end of the last array or tensor on that memory."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory  # the interface is an address, and keeps nothing alive
        self.__array_interface__: dict[str, Any] = memory.__array_interface__


class _Ticket(weakref.ref[_Lease]):
    """Memory whose lease it watches."""

    memory: NDArray[np.uint8]


class BufferPool:
    """Arrays of bytes. At most `spare` unused ones, of `spare_bytes` together, are kept. Thread-safe."""

    def __init__(self, spare: int = 4, spare_bytes: int | None = None) -> None:
        self._spare = spare
        self._spare_bytes = spare_bytes
        self._lock = threading.Lock()
        self._unused: list[NDArray[np.uint8]] = []  # the one that came back last at the end
        self._out: set[_Ticket] = set()
        # a lease may end at any moment, while this thread holds the lock too: `append` alone is called then, which is atomic,
        # and no Python code, in which an interrupt would be lost
        self._returned: deque[_Ticket] = deque()

    def take(self, size: int) -> NDArray[np.uint8]:
        """An uninitialised uint8 array (size,) at an address that ALIGNMENT divides, of memory that is at most twice as large.

        Its memory returns to the pool when it and every view of it are gone.
        """
        memory = self._find(size)
        if memory is None:
            allocated = np.empty(size + ALIGNMENT, dtype=np.uint8)
            skip = -allocated.ctypes.data % ALIGNMENT
            memory = allocated[skip : skip + size]
        lease = _Lease(memory)
        ticket = _Ticket(lease, self._returned.append)
        ticket.memory = memory
        self._out.add(ticket)
        return np.asarray(lease)[:size]

    def _find(self, size: int) -> NDArray[np.uint8] | None:
        """Take the smallest unused memory that fits out of the pool."""
        with self._lock:
            while self._returned:
                ticket = self._returned.popleft()
                self._out.discard(ticket)
                self._unused.append(ticket.memory)
            fitting = [place for place, memory in enumerate(self._unused) if size <= len(memory) <= 2 * size]
            best = min(fitting, key=lambda place: len(self._unused[place]), default=None)
            found = None if best is None else self._unused.pop(best)
            del self._unused[: -self._spare]
            if self._spare_bytes is not None:
                surplus = sum(map(len, self._unused)) - self._spare_bytes
                while surplus > 0:
                    surplus -= len(self._unused.pop(0))
            return found
