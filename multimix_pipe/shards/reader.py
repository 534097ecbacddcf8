"""Reads the encoded bytes of samples by `os.pread`, from a bounded set of open files.

Shards are not memory-mapped: a mapped file that shrinks kills the process that reads it, here it raises an error.
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
"""Idle file descriptors kept open; those in use come on top."""

_PROCESS_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ShardReader:
    """Reads the encoded samples of an index. Thread-safe: threads read in parallel."""

    def __init__(self, index: Index, open_files: int = OPEN_FILES) -> None:
        self._index = index
        self._limit = open_files
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, list[int]] = OrderedDict()  # shard -> its idle descriptors
        self._idle_count = 0

    def read(self, sample_id: int, memory: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the encoded bytes of a sample, read into `memory` if given (uint8, of the sample's size).

        Raises ShardError if the shard cannot be read or has changed since it was indexed, and MultiMixError if this process
        runs out of memory or file descriptors.
        """
        data = np.empty(self._index.size[sample_id], dtype=np.uint8) if memory is None else memory
        shard, offset = int(self._index.shard[sample_id]), int(self._index.offset[sample_id])
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
            if error.errno in _PROCESS_ERRORS:  # the sample is not bad and must not be replaced
                raise MultiMixError(
                    f"no sample can be read: {error}; raise the limit (ulimit -n) or free memory"
                ) from error
            raise ShardError(
                f"{self._index.name(sample_id)}: the shard must be readable; {error.strerror} ({self._index.shards[shard]})"
            ) from error
        if got < len(data):
            size, _ = self._index.stamps[shard]
            raise ShardError(
                f"{self._index.name(sample_id)}: its shard changed after it was indexed: {size:,} bytes then, {found[0]:,} now, "
                "or a new modification time. Restore it, or open the loader again"
            )
        return data

    def _take(self, shard: int) -> int:
        """Take an idle descriptor of a shard, or open one."""
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
        self.close()  # a loader dropped without close() must not keep files open

    def close(self) -> None:
        """Close all idle files; a later `read` opens them again."""
        with self._lock:
            idle, self._idle, self._idle_count = self._idle, OrderedDict(), 0
        for descriptors in idle.values():
            for descriptor in descriptors:
                with suppress(OSError):
                    os.close(descriptor)
