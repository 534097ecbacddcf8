"""Reads the encoded bytes of samples by `sample_id`, from shards that stay open.

Shards are not memory-mapped: a mapped file that shrinks kills the process that reads it. Here that raises an error.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.files import Descriptors, SlowStorage, exchange, read_fully
from multimix_pipe.shards.index import Index

logger = logging.getLogger(__name__)

_PROCESS_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Memory = NDArray[np.uint8]


class ShardReader:
    """Reads the encoded samples of an index. Thread-safe: threads read in parallel."""

    def __init__(self, index: Index, open_files: int | None = None) -> None:
        """`open_files` limits the shards open at once; by default half of the descriptors that this process may have."""
        self._index = index
        self._descriptors = Descriptors(index.shards, open_files, _exchange)
        self._stamps = np.array(index.stamps, dtype=np.int64).reshape(-1, 2)
        self._stop = np.zeros(1, dtype=np.uint8)

    @property
    def max_shards(self) -> int:
        """Maximum number of different shards in one call of `read_rows`, so that four calls may run at once."""
        return max(1, self._descriptors.limit // 4)

    def read(self, sample_id: int) -> Memory:
        """Return the encoded bytes of a sample.

        Raises ShardError if the shard cannot be read or has changed since it was indexed, and MultiMixError if this process
        runs out of memory or file descriptors.
        """
        index = self._index
        data = np.empty(index.size[sample_id], dtype=np.uint8)
        shard, offset = int(index.shard[sample_id]), int(index.offset[sample_id])
        try:
            with self._descriptors.held([shard]) as (shared,):
                # If it could not be opened, try again: that either succeeds or raises the error
                descriptor = shared if shared >= 0 else os.open(index.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
                try:
                    got = read_fully(descriptor, data.data, offset)
                    status = os.fstat(descriptor)
                finally:
                    if shared < 0:
                        os.close(descriptor)
        except OSError as error:
            if error.errno in _PROCESS_ERRORS:  # the sample is not bad and must not be replaced
                raise MultiMixError(
                    f"no sample can be read: {error}; raise the limit (ulimit -n) or free memory"
                ) from error
            raise ShardError(
                f"{index.name(sample_id)}: the shard must be readable; {error.strerror} ({index.shards[shard]})"
            ) from error
        found = status.st_size, status.st_mtime_ns
        if found != index.stamps[shard] or got < len(data):
            raise ShardError(
                f"{index.name(sample_id)}: its shard changed after it was indexed: {index.stamps[shard][0]:,} bytes then, "
                f"{found[0]:,} now, or a new modification time. Restore it, or open the loader again"
            )
        return data

    def read_rows(
        self, sample_ids: NDArray[np.int64], start: NDArray[np.int64], memory: Memory
    ) -> tuple[NDArray[np.bool_], float]:
        """Read several samples, sample i to `memory[start[i]:]`.

        Returns which of them were read completely, (n,) bool, and how many seconds the reads took.

        They may be in at most `max_shards` shards. Size and modification time of these are checked after the reads; samples
        count only if both are as indexed. Never raises for a sample: `read` raises what is wrong with a missing one.
        """
        index = self._index
        shards, file_of = np.unique(index.shard[sample_ids], return_inverse=True)
        offset, size = index.offset[sample_ids], index.size[sample_ids]
        got = np.empty(len(sample_ids), dtype=np.int64)
        stamp = np.empty((len(shards), 2), dtype=np.int64)
        loop = _compiled()
        read = _read_rows_in_python if loop is None else loop.read_rows
        with self._descriptors.held(shards.tolist()) as descriptors:
            files = np.array(descriptors, dtype=np.int32)
            took_ns = read(files, file_of, offset, size, start, memory, _pause_us(), self._stop, got, stamp)
        unchanged = (stamp == self._stamps[shards]).all(axis=1)
        complete: NDArray[np.bool_] = (got == size) & unchanged[file_of]
        return complete, 1e-9 * took_ns

    @property
    def stopped(self) -> bool:
        """Whether reads were asked to stop: rows that are missing now will not be read."""
        return bool(self._stop[0])

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside this context, make each `read_rows` stop after its current read."""
        self._stop[0] = 1
        try:
            yield
        finally:
            self._stop[0] = 0

    def close(self) -> None:
        """Close all files that are not being read. Reading opens them again."""
        self._descriptors.close()


@cache
def _compiled() -> ModuleType | None:
    """Return the module `shards.compiled`, or None if it cannot run."""
    try:
        from multimix_pipe.shards import compiled
    except (ImportError, SystemError, OSError) as error:  # the last two: Numba was built for another NumPy
        logger.info("reading in Python: Numba cannot be imported (%s)", error)
        return None
    return compiled if compiled.AVAILABLE else None


def _pause_us() -> int:
    return int(1e6 * SlowStorage.seconds)


def _exchange(closing: Sequence[int], opening: Sequence[Path]) -> list[int]:
    """Do the same as `files.exchange`, compiled for several files.

    One file is opened in Python: the main thread only ever opens one, and an interrupt must be able to end that.
    """
    loop = _compiled()
    if loop is None or len(opening) == 1:
        return exchange(closing, opening)
    names = [os.fsencode(path) + b"\0" for path in opening]
    start = np.cumsum([0, *map(len, names[:-1])])
    opened = np.empty(len(names), dtype=np.int32)
    joined = np.frombuffer(b"".join(names), dtype=np.uint8)
    loop.exchange(np.array(closing, dtype=np.int32), joined, start, _pause_us(), opened)
    return opened.tolist()


def _read_rows_in_python(
    files: NDArray[np.int32],
    file_of: NDArray[np.int64],
    offset: NDArray[np.int64],
    size: NDArray[np.int64],
    start: NDArray[np.int64],
    memory: Memory,
    pause_us: int,
    stop: NDArray[np.uint8],
    got: NDArray[np.int64],
    stamp: NDArray[np.int64],
) -> int:
    """Do the same as `compiled.read_rows`, in Python."""
    got[:] = 0
    descriptors = files.tolist()
    rows = zip(file_of.tolist(), offset.tolist(), size.tolist(), start.tolist(), strict=True)
    began = time.perf_counter_ns()
    for i, (file, at, length, to) in enumerate(rows):
        if stop[0]:
            break
        try:
            got[i] = read_fully(descriptors[file], memory.data[to : to + length], at)
        except OSError:
            continue  # reading the row again shows the error
    spent = time.perf_counter_ns() - began
    for f, descriptor in enumerate(descriptors):
        try:
            status = os.fstat(descriptor)
        except OSError:
            stamp[f] = -1
        else:
            stamp[f] = status.st_size, status.st_mtime_ns
    return spent
