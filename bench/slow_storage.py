"""Does reading hide the waits of slow storage? Samples per second read ahead and loaded, and an index built, if each read waits.

    python bench/slow_storage.py [--shards FOLDER] [--milliseconds 0 1 20]

Each read and each opening of a file is delayed by that time, as on a disk or a network share (`SlowStorage`). The loader's
prefetcher reads the samples of 110 KB in the order of an epoch, for a consumer that does nothing, and for one that runs Python
for --busy milliseconds a step and meanwhile holds the interpreter's lock most of the time. Indexing: 600 samples in 5 shards, in
this process; bytes read are those of /proc/self/io. Loading: both backends on photos, B = 64, K = 5, decoded and mixed, for a
consumer that does nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from data import chosen_shards, open_backend, padded_shards, repeated
from harness import forever, parser, rate, report, seconds
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.runtime.prefetcher import Prefetcher
from multimix_pipe.shards import open_index
from multimix_pipe.shards.files import SlowStorage

RATES, INDEXING = {1.0: 20_000, 20.0: 5_000}, {20.0: 3.0}
"""Targets by milliseconds: samples/s at least, seconds at most."""

AHEAD = 40
"""Steps that are read before a measurement, in which the prefetcher finds its pace."""


@contextmanager
def slow_reads(milliseconds: float) -> Iterator[None]:
    """Delay each read and each opening by `milliseconds`."""
    SlowStorage.seconds = milliseconds / 1e3
    try:
        yield
    finally:
        SlowStorage.seconds = 0.0


def steps(context: LoaderContext) -> Iterator[StepPlan]:
    """The steps of epoch after epoch."""
    size = context.config.batch_size
    for epoch in count():
        for first in range(0, len(context.index) - size + 1, size):
            yield context.plan.step(epoch, first, first + size)


def run_python(milliseconds: float) -> None:
    """Run Python code for `milliseconds`."""
    stop = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < stop:
        pass


def reading(context: LoaderContext, busy: float, duration: float) -> float:
    """Samples per second of reading ahead."""
    prefetcher = Prefetcher(context)
    read, start, taken = prefetcher.read(steps(context)), time.perf_counter(), 0
    for number in count():
        if number == AHEAD:
            start, taken = time.perf_counter(), 0
        taken += len(next(read).rows())
        run_python(busy)
        if number > AHEAD and time.perf_counter() - start > duration:
            break
    rate = taken / (time.perf_counter() - start)
    read.close()
    prefetcher.close()
    return rate


def indexing(folder: Path) -> tuple[float, float]:
    """Seconds to index the shards of a folder, and megabytes read."""
    with tempfile.TemporaryDirectory() as scratch:
        for shard in folder.glob("*.tar"):
            (Path(scratch) / shard.name).symlink_to(shard)
        before = bytes_read()
        took = seconds(lambda: open_index(scratch, progress=False))
        return took, (bytes_read() - before) / 1e6


def bytes_read() -> int:
    """Bytes that this process has read, from the page cache or a disk."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    arguments = parser(__doc__, shards=True, batch_size=256, samples=2048, tars=8, seconds=2.0, busy=5.0)
    arguments.add_argument("--milliseconds", type=float, nargs="+", default=[0, 1, 20], help="default: 0 1 20")
    args = arguments.parse_args()
    few = padded_shards(600, 5)
    options: dict[str, Any] = {"shards": str(padded_shards(args.samples, args.tars)), "batch_size": args.batch_size}
    context = open_backend("torch", **options).context
    folder, num_classes = chosen_shards(args.shards)
    photos: dict[str, Any] = {"shards": repeated(folder, 8), "num_classes": num_classes, "batch_size": 64}
    loading = {
        f"loading, {name}": rate(forever(open_backend(name, **photos)), 64, steps=20) for name in ("dali", "torch")
    }
    consumers = {"idle": 0.0, f"{args.busy:g} ms of Python a step": args.busy}
    results: dict[str, dict[str, Any]] = {}
    print(f"B = {args.batch_size}")
    for wait in args.milliseconds:
        found = defaultdict(list)
        for turn in range(args.rounds + 1):
            with slow_reads(wait):
                figures = {name: reading(context, busy, args.seconds) for name, busy in consumers.items()}
                figures |= {name: measure() for name, measure in loading.items()}
                figures["indexing, s"], figures["indexing, MB"] = indexing(few)
            for name, value in figures.items() if turn else ():
                found[name].append(value)
        for name in (*consumers, *loading):
            values, target = found[name], f"  target: {RATES[wait]:,}" if wait in RATES and name in consumers else ""
            spread = f"({min(values):,.0f} .. {max(values):,.0f})"
            print(
                f"{wait:3g} ms, {name:25} {statistics.median(values):8,.0f} samples/s {spread:20}{target}", flush=True
            )
        took, read = statistics.median(found["indexing, s"]), statistics.median(found["indexing, MB"])
        target = f"  target: {INDEXING[wait]:g} s" if wait in INDEXING else ""
        print(f"{wait:3g} ms, indexing 600 samples    {took:8.3f} s, {read:.2f} MB read{target}", flush=True)
        results[f"{wait:g} ms"] = dict(found)
    report(__doc__, {"results": results, "targets": {"samples/s": RATES, "indexing, s": INDEXING}}, args.json)


if __name__ == "__main__":
    main()
