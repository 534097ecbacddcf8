"""Does reading keep up? Samples a second of reading alone, and of loading while each read takes 2 ms longer.

    python bench/reader.py [--shards FOLDER] [--delay 2]

Warm: the shards are in the page cache. Cold: before each measurement the system is told to forget them (`posix_fadvise`,
DONTNEED), so that the disk is read. Slow: each read sleeps first, as on a network share. What the delay costs a loader is what
its read-ahead does not hide.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data import add_shards, chosen_shards, repeated

from multimix_pipe import Loader, open_loader
from multimix_pipe.benchmark.harness import forever, in_turn, parser, rate, report, seconds
from multimix_pipe.runtime.prefetcher import Prefetcher

STEPS_AHEAD = 4


@contextmanager
def slow_reads(milliseconds: float) -> Iterator[None]:
    """Each read takes so much longer."""
    preadv = os.preadv

    def slow(*args: object) -> int:
        time.sleep(milliseconds / 1e3)
        return preadv(*args)  # type: ignore[arg-type]

    os.preadv = slow
    try:
        yield
    finally:
        os.preadv = preadv


def forget(loader: Loader) -> None:
    """Drop the shards from the page cache."""
    for shard in loader.index.shards:
        descriptor = os.open(shard, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def reading(loader: Loader, steps: int, before: Callable[[], None] = lambda: None) -> Callable[[], float]:
    """Samples a second of the loader's read-ahead, in the order of an epoch, nothing decoded."""
    context = loader.context
    size = context.config.batch_size
    plans = [context.plan.step(0, first, first + size) for first in range(0, steps * size, size)]
    readers = Prefetcher(context)

    def read() -> None:
        ahead = deque()
        for step in plans:
            ahead.append(
                readers.start(step, lambda row, memory, step=step: context.reader.read(int(step.sample[row]), memory))
            )
            if len(ahead) > STEPS_AHEAD:
                ahead.popleft().rows()
        for step in ahead:
            step.rows()

    def measure() -> float:
        before()
        return len(plans) * size / seconds(read)

    return measure


def loading(loader: Loader, steps: int) -> Callable[[], float]:
    """Images a second of a loader, from the sixth batch of an iteration of its own on."""
    return lambda: rate(forever(loader), loader.context.config.batch_size, steps)()


def delayed(measure: Callable[[], float], milliseconds: float) -> Callable[[], float]:
    def slowly() -> float:
        with slow_reads(milliseconds):
            return measure()

    return slowly


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--delay", type=float, default=2.0, metavar="MS")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards = repeated(folder, 8)
    loaders = {
        backend: open_loader(shards, batch_size=args.batch_size, num_classes=num_classes, backend=backend, device="cpu")
        for backend in ("dali", "torch")
    }
    loader = loaders["torch"]
    steps = min(8 * args.steps, len(loader))
    mine = reading(loader, steps)
    once = open_loader(str(folder), batch_size=args.batch_size, num_classes=num_classes, backend="torch", device="cpu")
    alone = {
        "warm": mine,
        # of files that are read only once: what was read is in the page cache
        "cold": reading(once, len(once), before=lambda: forget(once)),
        f"slow, {args.delay:g} ms a read": delayed(mine, args.delay),
    }
    try:
        from reader_dali import samples_a_second

        alone["readers.webdataset, warm"] = samples_a_second(shards, args.batch_size, steps)
    except ImportError as error:
        print(f"readers.webdataset: missing, DALI does not import ({error})")
    figures = in_turn(alone, unit="samples/s", peer="warm", rounds=args.rounds)
    print(figures.table())

    whole = {}
    for backend, each in loaders.items():
        whole[f"{backend}, warm"] = loading(each, args.steps)
        whole[f"{backend}, slow"] = delayed(whole[f"{backend}, warm"], args.delay)
    loads = in_turn(whole, unit="images/s", peer="dali, warm", rounds=args.rounds)
    print(loads.table())
    hidden = {
        backend: sorted(
            slow / warm
            for slow, warm in zip(loads.values[f"{backend}, slow"], loads.values[f"{backend}, warm"], strict=True)
        )[args.rounds // 2]
        for backend in loaders
    }
    for backend, share in hidden.items():
        print(f"{backend}: with {args.delay:g} ms more a read, {share:.2f} of its rate")
    results = {"reading": figures.summary(), "loading": loads.summary(), "rate_kept_when_slow": hidden}
    report(__doc__.splitlines()[0], results, args.json)


if __name__ == "__main__":
    main()
