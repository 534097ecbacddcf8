"""Open files: one descriptor for each shard, shared by all threads that read, within a limit; and reading from them."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

MAX_OPEN = 1024
"""Descriptors kept open where the process may have many."""


class SlowStorage:
    """A wait before each read and each opening of a file: benchmarks simulate slow storage with it."""

    seconds = 0.0

    @classmethod
    def wait(cls) -> None:
        """Wait, where storage is to be slow."""
        if cls.seconds:
            time.sleep(cls.seconds)


def descriptor_limit() -> int:
    """Descriptors that shards may take: half of what this process may open, at most MAX_OPEN."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN if soft == resource.RLIM_INFINITY else max(1, min(soft // 2, MAX_OPEN))


def read_fully(descriptor: int, into: memoryview, offset: int) -> int:
    """Fill `into` with the bytes of a file at `offset`; return their number, which is smaller only at the file's end."""
    SlowStorage.wait()
    done = os.preadv(descriptor, [into], offset)
    if done == len(into):
        return done
    while 0 < done < len(into) and (got := os.preadv(descriptor, [into[done:]], offset + done)):
        done += got
    return done


def exchange(closing: Sequence[int], opening: Sequence[Path]) -> list[int]:
    """Close descriptors, then open files to read; return their descriptors, -1 for one that cannot be opened."""
    for descriptor in closing:
        with suppress(OSError):
            os.close(descriptor)
    opened = []
    for path in opening:
        SlowStorage.wait()
        try:
            opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            opened.append(-1)
    return opened


@dataclass
class _Entry:
    holders: int = 0
    descriptor: int | None = None
    """None while it is being opened, -1 where it could not be."""


class Descriptors:
    """Descriptors by shard. A shard is open while somebody holds it, and afterwards until its place is needed."""

    def __init__(
        self,
        paths: Sequence[Path],
        limit: int | None = None,
        exchange: Callable[[Sequence[int], Sequence[Path]], list[int]] = exchange,
    ) -> None:
        self._paths = paths
        self._exchange = exchange
        self.limit = descriptor_limit() if limit is None else limit
        """Shards that can be held at once."""
        self._pid = os.getpid()
        self._shards: OrderedDict[int, _Entry] = OrderedDict()  # in the order of their last use
        self._changed = threading.Condition()

    @contextmanager
    def held(self, shards: Sequence[int]) -> Iterator[list[int]]:
        """Hold different shards, at most `limit`, and yield their descriptors; -1 for one that cannot be opened.

        Whoever waits for room holds nothing meanwhile, and whoever waits for a shard that another thread opens has none left to
        open: so nobody waits for ever.
        """
        with self._changed:
            while (idle := self._idle(shards)) is None:
                self._changed.wait()
            closing = [self._shards.pop(shard).descriptor for shard in idle]
            mine = [shard for shard in shards if shard not in self._shards]
            found = [self._hold(shard) for shard in shards]
        try:
            if mine:
                unused = [descriptor for descriptor in closing if descriptor is not None and descriptor >= 0]
                opened = self._exchange(unused, [self._paths[shard] for shard in mine])
            with self._changed:
                if mine:
                    for shard, descriptor in zip(mine, opened, strict=True):
                        self._shards[shard].descriptor = descriptor
                    self._changed.notify_all()
                while any(entry.descriptor is None for entry in found):
                    self._changed.wait()
            yield [-1 if entry.descriptor is None else entry.descriptor for entry in found]
        finally:
            with self._changed:
                for shard, entry in zip(shards, found, strict=True):
                    entry.holders -= 1
                    if entry.descriptor is None and shard in mine:  # interrupted
                        entry.descriptor = -1
                    if entry.descriptor == -1 and not entry.holders:  # whoever comes next tries again
                        del self._shards[shard]
                self._changed.notify_all()

    def _hold(self, shard: int) -> _Entry:
        found = self._shards.setdefault(shard, _Entry())
        found.holders += 1
        self._shards.move_to_end(shard)
        return found

    def _idle(self, shards: Sequence[int]) -> list[int] | None:
        """The shards to close so that `shards` fit, those first that were not used for longest; None where too many are held."""
        surplus = len(self._shards) + sum(shard not in self._shards for shard in shards) - self.limit
        if surplus <= 0:
            return []
        wanted = set(shards)
        unused = (number for number, shard in self._shards.items() if not shard.holders and number not in wanted)
        idle = list(islice(unused, surplus))
        return idle if len(idle) == surplus else None

    def close(self) -> None:
        """Close what nobody holds. In a forked child nothing: its parent's threads may hold the lock for ever."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            for shard in [shard for shard, found in self._shards.items() if not found.holders]:
                self._close(shard)

    def _close(self, shard: int) -> None:
        descriptor = self._shards.pop(shard).descriptor
        if descriptor is not None and descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        self.close()  # a loader that is dropped without close() must not keep files open
