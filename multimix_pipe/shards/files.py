"""Open files: one descriptor per shard, shared by all reading threads, within a limit; and reads from them."""

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
"""Upper limit of the descriptors for shards, even if the process may have many more."""


class SlowStorage:
    """A delay before each read and each opening of a file, with which benchmarks simulate slow storage."""

    seconds = 0.0

    @classmethod
    def wait(cls) -> None:
        """Wait, if slow storage is simulated."""
        if cls.seconds:
            time.sleep(cls.seconds)


def descriptor_limit() -> int:
    """Return how many descriptors shards may use: half of those that this process may open, at most MAX_OPEN."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN if soft == resource.RLIM_INFINITY else max(1, min(soft // 2, MAX_OPEN))


def read_fully(descriptor: int, into: memoryview, offset: int) -> int:
    """Fill `into` with the bytes of a file at `offset`. Returns the bytes read, fewer only at the end of the file."""
    SlowStorage.wait()
    done = os.preadv(descriptor, [into], offset)
    if done == len(into):
        return done
    while 0 < done < len(into) and (got := os.preadv(descriptor, [into[done:]], offset + done)):
        done += got
    return done


def exchange(closing: Sequence[int], opening: Sequence[Path]) -> list[int]:
    """Close descriptors, then open files for reading. Returns their descriptors, -1 for one that cannot be opened."""
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
    """None while the shard is being opened, -1 if that failed."""


class Descriptors:
    """File descriptors by shard. A shard is open while it is held, and afterwards until its descriptor is needed."""

    def __init__(
        self,
        paths: Sequence[Path],
        limit: int | None = None,
        exchange: Callable[[Sequence[int], Sequence[Path]], list[int]] = exchange,
    ) -> None:
        self._paths = paths
        self._exchange = exchange
        self.limit = descriptor_limit() if limit is None else limit
        """Shards that can be open at once."""
        self._pid = os.getpid()
        self._shards: OrderedDict[int, _Entry] = OrderedDict()  # in the order of their last use
        self._changed = threading.Condition()

    @contextmanager
    def held(self, shards: Sequence[int]) -> Iterator[list[int]]:
        """Hold distinct shards, at most `limit`, and yield their descriptors; -1 for a shard that cannot be opened.

        A thread that waits for room holds nothing, and a thread that waits for a shard that another thread opens has none left
        to open itself. So there is no deadlock.
        """
        entries: list[_Entry] = []
        to_open: list[int] = []
        try:
            with self._changed:
                while (idle := self._idle(shards)) is None:
                    self._changed.wait()
                closing = [self._shards.pop(shard).descriptor for shard in idle]
                to_open += [shard for shard in shards if shard not in self._shards]
                for shard in shards:
                    entries.append(self._hold(shard))
            if to_open:
                unused = [descriptor for descriptor in closing if descriptor is not None]
                opened = self._exchange(unused, [self._paths[shard] for shard in to_open])
                with self._changed:
                    for shard, descriptor in zip(to_open, opened, strict=True):
                        self._opened(shard, descriptor)
            with self._changed:
                while any(entry.descriptor is None for entry in entries):
                    self._changed.wait()
            yield [-1 if entry.descriptor is None else entry.descriptor for entry in entries]
        finally:
            with self._changed:
                for shard, entry in zip(shards, entries, strict=False):
                    entry.holders -= 1
                    if entry.descriptor is None and shard in to_open:  # interrupted
                        self._opened(shard, -1)
                self._changed.notify_all()

    def _opened(self, shard: int, descriptor: int) -> None:
        self._shards[shard].descriptor = descriptor
        if descriptor == -1:  # the next caller tries again
            del self._shards[shard]
        self._changed.notify_all()

    def _hold(self, shard: int) -> _Entry:
        entry = self._shards.setdefault(shard, _Entry())
        entry.holders += 1
        self._shards.move_to_end(shard)
        return entry

    def _idle(self, shards: Sequence[int]) -> list[int] | None:
        """Return the idle shards to close so that `shards` fit, least recently used first; None if too many are held."""
        surplus = len(self._shards) + sum(shard not in self._shards for shard in shards) - self.limit
        if surplus <= 0:
            return []
        wanted = set(shards)
        unused = (shard for shard, entry in self._shards.items() if not entry.holders and shard not in wanted)
        idle = list(islice(unused, surplus))
        return idle if len(idle) == surplus else None

    def close(self) -> None:
        """Close idle shards. Does nothing in a forked child, where a thread of the parent may hold the lock forever."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            idle = [shard for shard, entry in self._shards.items() if not entry.holders]
            descriptors = [self._shards.pop(shard).descriptor for shard in idle]
            exchange([descriptor for descriptor in descriptors if descriptor is not None], [])

    def __del__(self) -> None:
        self.close()  # a loader that is dropped without close() must not keep files open
