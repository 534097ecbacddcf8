"""Does reading hide the waits of slow storage? Samples per second read ahead and loaded, and an index built, if each read waits.

    python bench/slow_storage.py [--shards FOLDER] [--milliseconds 0 1 20]

Each read and each opening of a file is delayed by that time, as on a disk or a network share (`SlowStorage`). Reading: the
loader's prefetcher reads samples of 110 KB in the order of an epoch, for a consumer that does nothing, and for one that runs
Python for --busy milliseconds per step and meanwhile holds the interpreter's lock most of the time. Indexing: 600 samples in 5
shards. Loading: both backends on photos, B = 64, K = 5, decoded and mixed, for a consumer that does nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from data import chosen_shards, open_backend, padded_shards, repeated
from harness import forever, in_turn, parser, rate, report, seconds
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.runtime.prefetcher import Prefetcher
from multimix_pipe.shards import open_index
from multimix_pipe.shards.files import SlowStorage

TARGETS = {1.0: {"reading": 20_000}, 20.0: {"reading": 5_000, "indexing": 200}}
"""Minimum samples/s, by milliseconds."""
INDEXED = 600
AHEAD = 40
"""Steps that are read before a measurement, in which the prefetcher finds its pace."""


def steps(context: LoaderContext) -> Iterator[StepPlan]:
    """Yield the steps of epoch after epoch."""
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
    """Return samples per second of reading ahead, for a consumer that runs Python for `busy` milliseconds per step."""
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


def indexing(shards: list[Path], megabytes: list[float]) -> float:
    """Return samples per second of indexing in this process; append how much it read, from the page cache or a disk."""

    def read() -> float:
        return int(Path("/proc/self/io").read_text().split()[1]) / 1e6

    with tempfile.TemporaryDirectory() as folder:
        for shard in shards:
            (Path(folder) / shard.name).symlink_to(shard)
        before = read()
        taken = seconds(lambda: open_index(folder, progress=False))
        megabytes.append(read() - before)
    return INDEXED / taken


def main() -> None:
    arguments = parser(__doc__, shards=True, batch_size=256, samples=2048, tars=8, seconds=2.0, busy=5.0)
    arguments.add_argument("--milliseconds", type=float, nargs="+", default=[0, 1, 20], help="default: 0 1 20")
    args = arguments.parse_args()
    padded, few = padded_shards(args.samples, args.tars), list(padded_shards(INDEXED, 5).glob("*.tar"))
    context = open_backend("torch", shards=padded, batch_size=args.batch_size).context
    folder, num_classes = chosen_shards(args.shards)
    photos: dict[str, Any] = {"shards": repeated(folder, 8), "num_classes": num_classes}
    megabytes: list[float] = []
    contenders: dict[str, Callable[[], float]] = {
        "reading, idle": partial(reading, context, 0.0, args.seconds),
        f"reading, {args.busy:g} ms of Python a step": partial(reading, context, args.busy, args.seconds),
        "indexing": partial(indexing, few, megabytes),
    }
    for backend in ("dali", "torch"):
        contenders[f"loading, {backend}"] = rate(forever(open_backend(backend, **photos)), 64, steps=20)
    results = {}
    for wait in args.milliseconds:
        SlowStorage.seconds = wait / 1e3
        figures = in_turn(contenders, unit="samples/s", peer="reading, idle", rounds=args.rounds)
        print(f"\n{wait:g} ms per read; targets: {TARGETS.get(wait, 'none')}\n{figures.table()}")
        print(f"indexing read {megabytes[-1]:.2f} MB", flush=True)
        results[f"{wait:g} ms"] = {**figures.summary(), "indexing_mb": megabytes[-1]}
    report(__doc__, {"results": results, "targets": TARGETS}, args.json)


if __name__ == "__main__":
    main()
