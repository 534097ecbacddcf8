"""What do bad samples cost under on_bad_sample="replace"? The rate with 1% known to the index, and the cost of a new one.

    python bench/bad_samples.py [--shards FOLDER]

A bad sample known to the index has no header and is never decoded. A new one has a valid header but no pixels, so it is only
found when it is decoded, in every epoch. Its cost is the extra time of the steps around it, in units of the median of the other
steps; "none" shows the noise of this measure. --images is the number of images decoded per measurement of the rate; --steps is
the number of steps in an epoch with new bad samples, at least 20.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from data import chosen_shards, open_backend, scratch_folder, write_tar
from harness import forever, in_turn, parser, rate, report
from multimix_pipe import Loader
from multimix_pipe.shards import Index, open_index
from multimix_pipe.shards.reader import ShardReader

Damage = Callable[[bytes], bytes]

BACKENDS = ("dali", "torch")
AROUND = range(-1, 7)
"""Offsets of the steps that a bad sample may slow down: the steps in flight after it are decoded again."""
START_OF_SCAN = b"\xff\xda"  # JPEG marker before the pixels


def without_header(data: bytes) -> bytes:
    """Damage that indexing finds."""
    return data[2:]


def without_pixels(data: bytes) -> bytes:
    """Damage that only decoding finds, whatever the window."""
    return data[: data.rindex(START_OF_SCAN) + 14]


def written(index: Index, count: int, bad: Collection[int], damage: Damage) -> Path:
    """Write a shard of `count` samples, repeating those of `index`, with the sample numbers in `bad` damaged."""
    reader = ShardReader(index)

    def members() -> Iterator[tuple[str, bytes]]:
        for number in range(count):
            sample = number % len(index)
            data = reader.read(sample).tobytes()
            yield f"{number:06}.jpg", damage(data) if number in bad else data
            yield f"{number:06}.cls", str(int(index.label[sample])).encode()

    shard = write_tar(scratch_folder() / "samples.tar", members())
    reader.close()
    return shard


def cost(loader: Loader, bad_step: int) -> float:
    """Return the extra time of the steps around `bad_step`, in units of the median of the other steps."""
    times, before = [], time.perf_counter()
    for _ in loader:
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    around = {bad_step + step for step in AROUND}
    usual = statistics.median(times[step] for step in range(3, len(times) - 3) if step not in around)
    return sum(times[step] - usual for step in around) / usual


def main() -> None:
    args = parser(__doc__, shards=True, batch_size=64, images=1280, steps=24).parse_args()
    folder, num_classes = chosen_shards(args.shards)
    logging.disable(logging.WARNING)  # one per bad sample
    index, size = open_index(folder, progress=False), args.batch_size
    opened = partial(open_backend, batch_size=size, num_classes=num_classes, on_bad_sample="replace")

    clean = written(index, args.images, (), without_header)
    known = written(index, args.images, range(0, args.images, 100), without_header)
    contenders = {
        f"{backend}, {kind}": rate(forever(opened(backend, shards=shard)), size, args.images // size)
        for backend in BACKENDS
        for kind, shard in (("clean", clean), ("1% known to be bad", known))
    }
    figures = in_turn(contenders, unit="images/s", peer="dali, clean", rounds=args.rounds)
    print(figures.table())
    kept = figures.compare((f"{backend}, 1% known to be bad", f"{backend}, clean") for backend in BACKENDS)

    bad_step = args.steps // 2 - 2
    kinds = {"none": [], "one new": [size // 2], "four new of one step": [size // 8, size // 3, size // 2, size - 1]}
    epochs: dict[str, Callable[[], float]] = {}
    for kind, bad in kinds.items():
        shard = written(index, args.steps * size, [bad_step * size + row for row in bad], without_pixels)
        for backend in BACKENDS:
            epochs[f"{backend}, {kind}"] = partial(cost, opened(backend, shards=shard, shuffle="none"), bad_step)
    costs = in_turn(epochs, unit="steps", peer="dali, one new", rounds=args.rounds)
    print(costs.table())
    report(__doc__, {"rate": figures.summary(), "kept": kept, "steps_more": costs.summary()}, args.json)


if __name__ == "__main__":
    main()
