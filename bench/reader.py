"""Does reading keep up? Samples per second of reading alone, and of loading while each read takes 2 ms longer.

    python bench/reader.py [--shards FOLDER] [--delay 2]

Warm: the shards are in the page cache. Cold: before each measurement the system is told to forget them (`posix_fadvise`,
DONTNEED), so that the disk is read. Slow: each read sleeps for --delay milliseconds first, as on a network share. What the delay
costs a loader is what its read-ahead does not hide. DALI's own reader reads in the order of the files, which its buffer shuffles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data import chosen_shards, open_backend, repeated, webdataset_reader
from harness import forever, in_turn, parser, rate, report, seconds
from multimix_pipe import Loader
from multimix_pipe.runtime.prefetcher import Prefetcher
from multimix_pipe.shards.files import SlowStorage


@contextmanager
def slow_reads(milliseconds: float) -> Iterator[None]:
    """Each read takes so much longer."""
    SlowStorage.seconds = milliseconds / 1e3
    try:
        yield
    finally:
        SlowStorage.seconds = 0.0


def forget(loader: Loader) -> None:
    """Drop the shards from the page cache."""
    for shard in loader.index.shards:
        descriptor = os.open(shard, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def reading(loader: Loader, steps: int, before: Callable[[], None] = lambda: None) -> Callable[[], float]:
    """Samples per second of the loader's read-ahead, in the order of an epoch, nothing decoded."""
    context = loader.context
    size = context.config.batch_size
    plans = [context.plan.step(0, first, first + size) for first in range(0, steps * size, size)]
    prefetcher = Prefetcher(
        context, lambda replacements, row, encoded: replacements.use(row, encoded, lambda _, read: read)
    )

    def read() -> None:
        for step in prefetcher.read(plans):
            step.rows()

    def measure() -> float:
        before()
        return len(plans) * size / seconds(read)

    return measure


def loading(loader: Loader, steps: int) -> Callable[[], float]:
    """Images per second of a loader, from the sixth batch of an iteration of its own on."""
    return lambda: rate(forever(loader), loader.context.config.batch_size, steps)()


def delayed(measure: Callable[[], float], milliseconds: float) -> Callable[[], float]:
    def slowly() -> float:
        with slow_reads(milliseconds):
            return measure()

    return slowly


def main() -> None:
    args = parser(__doc__, shards=True, batch_size=64, steps=20, delay=2.0).parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards, options = repeated(folder, 8), {"batch_size": args.batch_size, "num_classes": num_classes}
    loaders = {backend: open_backend(backend, shards=shards, **options) for backend in ("dali", "torch")}
    steps = min(8 * args.steps, len(loaders["torch"]))
    mine = reading(loaders["torch"], steps)
    once = open_backend("torch", shards=str(folder), **options)
    reader = webdataset_reader(shards, ["jpg", "cls"], batch_size=args.batch_size, num_threads=2)
    reader.run()
    alone = {
        "warm": mine,
        # of files that are read only once: what was read is in the page cache
        "cold": reading(once, len(once), before=lambda: forget(once)),
        f"slow, {args.delay:g} ms a read": delayed(mine, args.delay),
        "readers.webdataset, warm": lambda: (
            steps * args.batch_size / seconds(lambda: [reader.run() for _ in range(steps)])
        ),
    }
    figures = in_turn(alone, unit="samples/s", peer="warm", rounds=args.rounds)
    print(figures.table())

    whole: dict[str, Callable[[], float]] = {}
    for backend, loader in loaders.items():
        whole[f"{backend}, warm"] = loading(loader, args.steps)
        whole[f"{backend}, slow"] = delayed(whole[f"{backend}, warm"], args.delay)
    loads = in_turn(whole, unit="images/s", peer="dali, warm", rounds=args.rounds)
    print(loads.table())
    kept = {backend: loads.ratio(f"{backend}, slow", f"{backend}, warm") for backend in loaders}
    for backend, share in kept.items():
        print(f"{backend}: with {args.delay:g} ms more a read, {share:.2f} of its rate")
    report(__doc__, {"reading": figures.summary(), "loading": loads.summary(), "rate_kept_when_slow": kept}, args.json)


if __name__ == "__main__":
    main()
