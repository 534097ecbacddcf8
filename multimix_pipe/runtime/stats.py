"""What loaders and executors measure of their own work."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple


class ThreadTime:
    """Seconds that threads spend on one kind of work, summed over the threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds, self._since = 0.0, 0.0
        self.active = 0
        """Threads at work."""

    @property
    def seconds(self) -> float:
        """The sum so far, with the work that is going on."""
        return self.change(0)

    def change(self, threads: int) -> float:
        """Note that `threads` more threads work, or fewer if it is negative. Returns the seconds so far."""
        with self._lock:
            now = time.perf_counter()
            self._seconds += self.active * (now - self._since)
            self.active, self._since = self.active + threads, now
            return self._seconds

    def __enter__(self) -> None:
        self.change(1)

    def __exit__(self, *_: object) -> None:
        self.change(-1)


class ExecutorStats(NamedTuple):
    """What an executor has done since it was made."""

    decode_s: float | None
    """Seconds of decoding and resizing, summed over the threads; None if DALI does it."""
    mix_s: float
    """Seconds of normalising and mixing on the host, summed over the threads; on a GPU, of starting that."""
    queue: int | None
    """Batches that are ready; None if DALI holds them."""


NOTHING_DONE = ExecutorStats(0.0, 0.0, 0)


class IterationStats:
    """What one iteration over a loader has measured. It is made when the first batch is asked for."""

    def __init__(self, before: ExecutorStats = NOTHING_DONE) -> None:
        """`before` is what the executor had done by then."""
        self._before = before
        self._images, self._wait = 0, 0.0
        self._began = self._last = self._asked = time.perf_counter()

    def hand_out(self, images: int) -> None:
        """Note that a batch is ready to be handed out."""
        self._last = time.perf_counter()
        self._images += images
        self._wait += self._last - self._asked

    def ask(self) -> None:
        """Note that the next batch is asked for."""
        self._asked = time.perf_counter()

    def report(self, now: ExecutorStats) -> dict[str, float | int | None]:
        """Return the fields of `Loader.stats`, for what the executor has done by now."""
        seconds, before = self._last - self._began, self._before
        return {
            "images": self._images,
            "seconds": seconds,
            "images_per_s": self._images / seconds if seconds else 0.0,
            "wait_s": self._wait,
            "decode_s": None if now.decode_s is None or before.decode_s is None else now.decode_s - before.decode_s,
            "mix_s": now.mix_s - before.mix_s,
            "queue": now.queue,
        }
