"""Host memory for batches that is reused once nobody refers to it, and never before.

A batch of 64 pairs at K = 5 is 190 MB: to allocate that anew each step costs more (page faults) than to mix it.
"""

from __future__ import annotations

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
        self.__array_interface__: dict[str, Any] = memory.__array_interface__


class BufferPool:
    """Arrays of bytes by size. At most `spare` unused ones of a size are kept. Thread-safe."""

    def __init__(self, spare: int = 4) -> None:
        self._spare = spare
        # no lock: a finalizer may run in the middle of `take`; the operations of dict and deque are atomic
        self._free: dict[int, deque[NDArray[np.uint8]]] = {}

    def take(self, size: int) -> NDArray[np.uint8]:
        """An uninitialised uint8 array (size,) at an address that ALIGNMENT divides.

        Its memory returns to the pool when it and every view of it are gone.
        """
        free = self._free.setdefault(size, deque(maxlen=self._spare))
        try:
            memory = free.pop()
        except IndexError:
            allocated = np.empty(size + ALIGNMENT, dtype=np.uint8)
            skip = -allocated.ctypes.data % ALIGNMENT
            memory = allocated[skip : skip + size]
        lease = _Lease(memory)
        weakref.finalize(lease, free.append, memory).atexit = False
        return np.asarray(lease)
