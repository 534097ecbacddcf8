"""Bytes of samples, read by position: `os.pread` over a bounded set of open files.

Shards are not memory-mapped: a file that shrinks would kill the process, here it is an error with a name.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.index import Index
from multimix_pipe.shards.tar import read_fully

OPEN_FILES = 128
"""Descriptors kept open; more only while more threads than this read at once."""

_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ShardReader:
    """Reads encoded samples of an index. Thread-safe; every thread may read at once."""

    def __init__(self, index: Index, open_files: int = OPEN_FILES) -> None:
        self._index = index
        self._limit = open_files
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, list[int]] = OrderedDict()  # shard -> its descriptors that nobody reads from
        self._idle_count = 0

    def read(self, sample: int, memory: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The encoded bytes of one sample, in `memory` if that is given (of their size).

        Raises ShardError where the shard cannot be read, or is not the one that was indexed; MultiMixError where this process has
        no more room or descriptors.
        """
        data = np.empty(self._index.size[sample], dtype=np.uint8) if memory is None else memory
        shard, offset = int(self._index.shard[sample]), int(self._index.offset[sample])
        try:
            descriptor = self._take(shard)
            try:
                status = os.fstat(descriptor)
                found = status.st_size, status.st_mtime_ns
                got = read_fully(descriptor, data.data, offset) if found == self._index.stamps[shard] else 0
            except OSError:
                os.close(descriptor)
                raise
            self._keep(shard, descriptor)
        except OSError as error:
            if error.errno in _OF_THE_PROCESS:  # says nothing about the sample, which must not be replaced for it
                raise MultiMixError(
                    f"no sample can be read: {error}; raise the limit (ulimit -n) or free memory"
                ) from error
            raise ShardError(
                f"{self._index.name(sample)}: the shard must be readable; {error.strerror} ({self._index.shards[shard]})"
            ) from error
        if got < len(data):
            size, _ = self._index.stamps[shard]
            raise ShardError(
                f"{self._index.name(sample)}: its shard changed after it was indexed: {size:,} bytes then, {found[0]:,} now, or "
                "another time of modification. Restore it, or open the loader again"
            )
        return data

    def _take(self, shard: int) -> int:
        """A descriptor of a shard that nobody else reads from."""
        with self._lock:
            idle = self._idle.get(shard)
            if idle:
                descriptor = idle.pop()
                self._idle_count -= 1
                if not idle:
                    del self._idle[shard]
                return descriptor
        return os.open(self._index.shards[shard], os.O_RDONLY | os.O_CLOEXEC)

    def _keep(self, shard: int, descriptor: int) -> None:
        with self._lock:
            self._idle.setdefault(shard, []).append(descriptor)
            self._idle.move_to_end(shard)
            self._idle_count += 1
            surplus: list[int] = []
            while self._idle_count > self._limit:
                oldest = self._idle.popitem(last=False)[1]
                self._idle_count -= len(oldest)
                surplus += oldest
        for old in surplus:
            os.close(old)

    def __del__(self) -> None:
        self.close()  # a loader that is dropped without close() must not keep 128 files open

    def close(self) -> None:
        """Close all files. PendingReads opens them again."""
        with self._lock:
            idle, self._idle, self._idle_count = self._idle, OrderedDict(), 0
        for descriptors in idle.values():
            for descriptor in descriptors:
                with suppress(OSError):
                    os.close(descriptor)
