"""Would the torch backend keep 16 and 32 cores busy? Images per second where decoding is a wait that takes no core.

    python bench/many_cores.py [--threads 4 16 32] [--ms 2.1] [--resizing 0.2]

`simplejpeg.decode_jpeg` becomes a wait of --ms (2.1: decode and resize of a photo on a core of a cloud's Xeon) that holds neither
a core nor the interpreter's lock, so that a machine of two cores can show what would hold sixteen back. At most --threads waits
run at once. All else is real: 110 KB are read for each image, copied into the batch, normalised. With --resizing, crops are
resized too, and that share of the wait takes the place of `torch.nn.functional.interpolate`: more threads then want the lock.

The limit is a bare pool of as many threads that do nothing but wait. The CPU time of an image is set against that of the same
reads, copies and normalising, called one after the other by one thread. All three are measured in turn.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any
from unittest import mock

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from data import NUMBER_AT, SIDE, open_backend, padded_jpeg, padded_shards, repeated
from harness import forever, parser, ratio, report
from multimix_pipe import TrainTransform
from multimix_pipe.native.short_jpeg import place_of_height
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.runtime.kernels import host_kernel
from multimix_pipe.runtime.kernels.normalize import Normalize

SHARES, COST = {16: 0.85, 32: 0.6}, 1.6
"""Targets: minimum share of the bare pool's rate, by number of threads; maximum CPU time relative to the bare calls."""

EPOCH = 16_384
"""Images per epoch: many, because nothing is prepared ahead at the end of an epoch, and that is not measured here."""

AHEAD = 12
"""Batches taken before a measurement, as they may already be ready."""

Waits = tuple[float, float]
"""Seconds per image that stand in for decoding, and for resizing."""


class Waiting:
    """Stands in for decoding and resizing: waits, then returns an image that was made beforehand."""

    def __init__(self, decoding: float, resizing: float, at_once: int) -> None:
        self._decoding, self._resizing, self._slots = decoding, resizing, threading.Semaphore(at_once)
        self.images: list[NDArray[np.uint8]] = [
            simplejpeg.decode_jpeg(padded_jpeg(number), colorspace="RGB") for number in range(256)
        ]
        self._height_at = place_of_height(np.frombuffer(padded_jpeg(0), dtype=np.uint8))
        self._resized = torch.empty(1, 3, SIDE, SIDE, dtype=torch.uint8).to(memory_format=torch.channels_last)

    def decode_jpeg(self, data: NDArray[np.uint8], *args: object, **options: object) -> NDArray[np.uint8]:
        """Wait in the place of `simplejpeg.decode_jpeg`."""
        with self._slots:
            time.sleep(self._decoding)
        rows = int(data[self._height_at]) << 8 | int(data[self._height_at + 1])
        return self.images[int(data[NUMBER_AT])][:rows]

    def interpolate(self, *args: object, **options: object) -> torch.Tensor:
        """Wait in the place of `torch.nn.functional.interpolate`."""
        with self._slots:
            time.sleep(self._resizing)
        return self._resized


class BareCalls:
    """Reads, copies and normalises the loader's steps, in the calling thread."""

    def __init__(self, context: LoaderContext, images: list[NDArray[np.uint8]]) -> None:
        kernel, rows = host_kernel(), context.config.batch_size
        assert kernel is not None, "this question needs Numba"
        self._kernel, self._context, self._images = kernel, context, images
        self._normalize = Normalize.of(context.config.transform, channels_last=False)
        self._encoded = np.empty(rows * int(context.index.size.max()), dtype=np.uint8)
        self._pixels = torch.empty(rows, 3, SIDE, SIDE, dtype=torch.uint8)
        self._out = torch.empty(rows, 3, SIDE, SIDE)

    def step(self, first: int) -> None:
        """Work on the images of the step that begins at position `first`."""
        context, plan = self._context, self._context.plan.step(0, first, first + len(self._pixels))
        samples = np.sort(plan.sample)
        size = context.index.size[samples]
        complete, _ = context.reader.read_rows(samples, np.cumsum(size) - size, self._encoded)
        assert complete.all()
        images = [self._images[sample % 256] for sample in samples.tolist()]
        self._kernel.copy_rows(images, plan.flip, self._pixels, False)
        layout = self._normalize.layout(self._pixels.shape)
        self._kernel.blend(self._pixels, None, self._out, layout, self._normalize)

    def cost(self, steps: int) -> float:
        """Return CPU microseconds per image."""
        start, rows = time.thread_time(), len(self._pixels)
        for number in range(steps):
            self.step(number * rows % len(self._context.index))
        return 1e6 * (time.thread_time() - start) / (steps * rows)


def taken(batches: Iterator[object], batch_size: int, seconds: float) -> tuple[float, float]:
    """Return images per second of a loader, and CPU microseconds per image of this process."""
    for _ in islice(batches, AHEAD):
        pass
    start, cpu, images = time.perf_counter(), time.process_time(), 0
    while (spent := time.perf_counter() - start) < seconds:
        next(batches)
        images += batch_size
    return images / spent, 1e6 * (time.process_time() - cpu) / images


def bare_pool(threads: int, waits: Waits, seconds: float) -> float:
    """Return images per second of threads that only do the waits of each image."""
    start = time.perf_counter()

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() < start + seconds:
            for wait in filter(None, waits):
                time.sleep(wait)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - start)


def measured(threads: int, waits: Waits, batch_size: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return all figures for a number of threads, one value per round."""
    found, waiting = defaultdict(list), Waiting(*waits, threads)
    area = 0.9 if waits[1] else 1.0
    transform = TrainTransform(size=SIDE, scale=(area, area), ratio=(1.0, 1.0))
    options: dict[str, Any] = {"num_threads": threads, "batch_size": batch_size, "transform": transform}
    options |= {"shards": repeated(padded_shards(512, 4), EPOCH // 512)}
    decoding = mock.patch.object(simplejpeg, "decode_jpeg", waiting.decode_jpeg)
    resizing = mock.patch.object(torch.nn.functional, "interpolate", waiting.interpolate)
    with decoding, resizing, open_backend("torch", k=None, **options) as loader:
        batches, bare = forever(loader), BareCalls(loader.context, waiting.images)
        for turn in range(rounds + 1):
            rate, cost = taken(batches, batch_size, seconds)
            figures = {"images/s": rate, "bare pool": bare_pool(threads, waits, seconds)}
            figures |= {"CPU us": cost, "bare calls, CPU us": bare.cost(-(-2048 // batch_size))}
            for name, value in figures.items() if turn else ():
                found[name].append(value)
    return dict(found)


def main() -> None:
    arguments = parser(__doc__, ms=2.1, resizing=0.0, batch_size=64, seconds=3.0)
    arguments.add_argument("--threads", type=int, nargs="+", default=[4, 16, 32], help="default: 4 16 32")
    args = arguments.parse_args()
    about = f"B = {args.batch_size}, {SIDE}x{SIDE} float32, not mixed"
    print(f"{args.ms} ms of waiting an image, {args.resizing:.0%} of it in resizing, {about}")
    results, waits = {}, (args.ms / 1e3 * (1 - args.resizing), args.ms / 1e3 * args.resizing)
    for threads in args.threads:
        values = measured(threads, waits, args.batch_size, args.seconds, args.rounds)
        share = ratio(values["images/s"], values["bare pool"])
        cost = ratio(values["CPU us"], values["bare calls, CPU us"])
        rate, pool, cpu, calls = (statistics.median(found) for found in values.values())
        print(
            f"{threads:3} threads: {rate:7,.0f} images/s, {share:.2f} of the bare pool's {pool:,.0f}; "
            f"{cpu:.0f} us of CPU an image, {cost:.2f} of the bare calls' {calls:.0f}",
            flush=True,
        )
        results[threads] = {"values": values, "share_of_pool": share, "cpu_to_bare_calls": cost}
    print(f"targets: by threads, {SHARES} of the bare pool; {COST} of the bare calls")
    settings = {name: getattr(args, name) for name in ("ms", "resizing", "batch_size")}
    report(__doc__, {**settings, "threads": results}, args.json)


if __name__ == "__main__":
    main()
