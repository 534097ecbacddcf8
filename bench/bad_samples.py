"""What do bad samples cost under on_bad_sample="replace"? The rate with 1% that the index knows, and a step that meets a new one.

    python bench/bad_samples.py [--shards FOLDER]

What the index knows has no header and is never decoded. A new one has a good header and no pixels: only decoding finds it, every
epoch anew. What it costs is what the steps around it take more than the median of the other steps, in such medians; "none" shows
what that measure gives of noise.
"""

from __future__ import annotations

import atexit
import io
import logging
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from data import add_shards, chosen_shards

from multimix_pipe import Loader, MultiMix, open_loader
from multimix_pipe.benchmark.harness import forever, in_turn, parser, rate, ratio, report
from multimix_pipe.shards import Index, open_index
from multimix_pipe.shards.reader import ShardReader

Damage = Callable[[bytes], bytes]

AROUND = range(-1, 7)
"""Steps that a bad one may slow down, counted from it: those in flight behind it are decoded again."""
START = b"\xff\xda"  # of a JPEG's pixels


def without_header(data: bytes) -> bytes:
    """What indexing finds out."""
    return data[2:]


def without_pixels(data: bytes) -> bytes:
    """What only decoding finds out, whatever the window."""
    return data[: data.rindex(START) + 14]


def written(index: Index, count: int, bad: Collection[int], damage: Damage) -> Path:
    """A shard of `count` samples, those of `index` over and over, the ones numbered in `bad` damaged."""
    folder = Path(tempfile.mkdtemp(prefix="multimix_bench_"))
    atexit.register(shutil.rmtree, folder)  # hundreds of megabytes
    shard = folder / "samples.tar"
    reader = ShardReader(index)
    with tarfile.open(shard, "w") as tar:
        for number in range(count):
            sample = number % len(index)
            data = reader.read(sample).tobytes()
            label = str(int(index.label[sample])).encode()
            for kind, content in (("jpg", damage(data) if number in bad else data), ("cls", label)):
                member = tarfile.TarInfo(f"{number:06}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    reader.close()
    return shard


def step_times(loader: Loader) -> list[float]:
    """Seconds until each batch of an epoch is there, the first from the start of the epoch."""
    times, before = [], time.perf_counter()
    for _ in loader:
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return times


def cost(times: list[float], bad_step: int) -> float:
    """What the steps around `bad_step` take more than the median of the others, in such medians."""
    around = {bad_step + step for step in AROUND}
    others = [spent for step, spent in enumerate(times) if step not in around and 2 < step < len(times) - 3]
    usual = statistics.median(others)
    return sum(times[step] - usual for step in around) / usual


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--images", type=int, default=1280, help="decoded a measurement of the rate")
    arguments.add_argument(
        "--steps", type=int, default=24, help="of an epoch with a newly found bad sample; at least 20"
    )
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    logging.disable(logging.WARNING)  # of each bad sample
    index = open_index(folder, progress=False)
    size = args.batch_size

    def opened(shard: Path, backend: str, **options: object) -> Loader:
        return open_loader(
            shard,
            batch_size=size,
            num_classes=max(num_classes, 1000),
            mix=MultiMix(k=5),
            backend=backend,
            device="cpu",
            on_bad_sample="replace",
            **options,
        )

    clean = written(index, args.images, (), without_header)
    known = written(index, args.images, range(0, args.images, 100), without_header)
    contenders = {
        f"{backend}, {kind}": rate(forever(opened(shard, backend)), size, args.images // size)
        for backend in ("dali", "torch")
        for kind, shard in (("clean", clean), ("1% known to be bad", known))
    }
    figures = in_turn(contenders, unit="images/s", peer="dali, clean", rounds=args.rounds)
    print(figures.table())
    kept = {
        backend: ratio(figures.values[f"{backend}, 1% known to be bad"], figures.values[f"{backend}, clean"])
        for backend in ("dali", "torch")
    }
    for backend, share in kept.items():
        print(f"{backend}: {share:.3f} of the clean rate with 1% of the samples known to be bad")

    bad_step = args.steps // 2 - 2
    rows = {"one new": [size // 2], "four new of one step": [size // 8, size // 3, size // 2, size - 1]}
    epochs: dict[str, Callable[[], float]] = {}
    for kind, bad in {"none": [], **rows}.items():
        shard = written(index, args.steps * size, [bad_step * size + row for row in bad], without_pixels)
        for backend in ("dali", "torch"):
            loader = opened(shard, backend, shuffle="none")
            epochs[f"{backend}, {kind}"] = lambda loader=loader: cost(step_times(loader), bad_step)
    costs = in_turn(epochs, unit="steps", peer="dali, one new", rounds=args.rounds)
    for name, values in costs.values.items():
        print(f"{name}: {statistics.median(values):.2f} steps more ({min(values):.2f} .. {max(values):.2f})")
    report(__doc__.splitlines()[0], {"rate": figures.summary(), "kept": kept, "steps_more": costs.values}, args.json)


if __name__ == "__main__":
    main()
