"""How fast is building an index compared to wds2idx, on one core, and what does opening one of 1.28 million samples cost?

    python bench/index.py [--shards FOLDER] [--opened 1282]

Both read the same shards from the page cache and write to a temporary folder. Our index also holds each image's label, width,
height and orientation. wds2idx comes with the NVIDIA DALI wheel and reads the headers with GNU tar. Opening is measured on
--opened shards of a thousand samples each, in a fresh process per round.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from data import generated_shards, kept_folder, write_tar
from harness import Figures, in_a_new_process, in_turn, parser, peak_memory, report, resident_memory, seconds
from multimix_pipe import open_loader
from multimix_pipe.shards import list_shards, open_index
from multimix_pipe.shards.index.build import build_one
from multimix_pipe.shards.index.scan import scan_shard
from multimix_pipe.shards.index.store import index_name

T = TypeVar("T")

SHARDS = 1282
"""Number of shards of ImageNet at a thousand samples each."""
OURS, PEER = "multimix-pipe index", "wds2idx with GNU tar"


def main() -> None:
    args = parser(__doc__, shards=True, opened=SHARDS).parse_args()
    missing = why_no_peer()
    results: dict[str, Any] = {"missing": missing}
    for name, reason in missing.items():
        print(f"{name}: missing: {reason}")
    sets = {"own shards": args.shards} if args.shards else {"photos": photos(), "small images": small_images()}
    for name, folder in sets.items():
        shards = list_shards(folder)
        print(f"\nbuilding: {name}, {len(shards)} shards, {sum(shard.stat().st_size for shard in shards) / 1e6:.0f} MB")
        figures = building(shards, args.rounds, with_peer=not missing)
        print(figures.table())
        results[f"building, {name}"] = figures.summary()
    print(f"\nopening: {args.opened:,} shards of a thousand samples, a fresh process each time")
    for unit, figures in opening(large_set(args.opened), args.rounds).items():
        print(figures.table())
        results[f"opening, {unit}"] = figures.summary()
    report(__doc__, results, args.json)


def why_no_peer() -> dict[str, str]:
    """Return {PEER: why it cannot run here}, or {} if it can."""
    if find_spec("wds2idx") is None:
        return {PEER: "not installed; it comes with nvidia-dali-cuda120 or -cuda130"}
    return {} if shutil.which("tar") else {PEER: "no tar command found on the PATH"}


def building(shards: tuple[Path, ...], rounds: int, *, with_peer: bool) -> Figures:
    """Measure samples per second on one core; processes that a contender starts stay on that core too."""
    samples = sum(len(scan_shard(shard, "cls").rows) for shard in shards)  # also brings them into the page cache
    work = {OURS: run_ours, **({PEER: run_wds2idx} if with_peer else {})}

    def samples_a_second(name: str) -> float:
        # a fresh folder, because file systems take longer to replace a file than to create one
        with tempfile.TemporaryDirectory(prefix="multimix_bench_") as folder:
            taken = seconds(lambda: work[name](shards, Path(folder)))
            found = sum(int(path.read_text().split(maxsplit=2)[1]) for path in Path(folder).glob("*.idx"))
        if name == PEER and found != samples:  # it groups adjacent members only, and keeps samples without an image
            print(f"wds2idx finds {found} samples, but {samples} have an image: the contenders do not do the same work")
        return samples / taken

    contenders = {name: partial(samples_a_second, name) for name in work}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return in_turn(contenders, unit="samples/s", peer=[*work][-1], rounds=rounds)
    finally:
        os.sched_setaffinity(0, cores)


def run_ours(shards: tuple[Path, ...], out: Path) -> None:
    for shard in shards:
        build_one(shard, "cls", out / index_name(shard, "cls"))


def run_wds2idx(shards: tuple[Path, ...], out: Path) -> None:
    """Index as the wds2idx command does, without starting Python for each shard."""
    import wds2idx  # type: ignore[import-untyped]

    for shard in shards:
        creator = wds2idx.IndexCreator(str(shard), str(out / f"{shard.stem}.idx"), verbose=False)
        creator.create_index()
        creator.close()


def opening(folder: Path, rounds: int) -> dict[str, Figures]:
    """Return the time and memory of each part of opening, as {"s": ..., "MB": ...}."""
    figures = {"s": Figures("s", "open_index"), "MB": Figures("MB", "kept")}
    for turn in range(rounds + 1):
        found = in_a_new_process(open_once, folder)
        for unit, parts in found.items():
            for part, value in parts.items():
                figures[unit].values.setdefault(part, [])
                if turn:
                    figures[unit].values[part].append(value)
    return figures


def open_once(folder: Path) -> dict[str, dict[str, float]]:
    """Time opening an index and what a loader derives from it; return these times and the index's memory."""
    times: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        done = work()
        times[name] = time.perf_counter() - start
        return done

    before = resident_memory()
    index = timed("open_index", lambda: open_index(folder, progress=False))
    memory = {"at the most": (peak_memory() - before) / 1e6, "kept": (resident_memory() - before) / 1e6}
    classes = int(index.label.max()) + 1
    del index
    options: dict[str, Any] = {"batch_size": 256, "num_classes": classes, "backend": "torch", "device": "cpu"}
    context = timed("open_loader, with its index", lambda: open_loader(folder, **options)).context
    timed("order of an epoch", lambda: context.plan.order(0))
    timed("first step", lambda: context.plan.step(0, 0, 256))
    timed("digests for a state", lambda: (context.index.fingerprint, context.plan.samples.digest))
    return {"s": times, "MB": memory}


def photos() -> Path:
    """Return three shards of a thousand samples, as in ImageNet, that repeat the generated photos under distinct keys."""
    images = []
    for shard in list_shards(generated_shards()):
        with tarfile.open(shard) as tar:
            images += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    return kept_folder("index_photos", lambda folder: write_shards(folder, images, 1000))


def small_images(per_shard: int = 10_000) -> Path:
    """Return three shards of 32x32 JPEGs, the size of CIFAR's images."""
    images = []
    for number in range(500):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((32, 32)).save(buffer, "JPEG", quality=95)
        images.append(buffer.getvalue())
    return kept_folder(f"index_small_{per_shard}", lambda folder: write_shards(folder, images, per_shard))


def write_shards(folder: Path, images: list[bytes], per_shard: int, shards: int = 3) -> None:
    """Write `shards` shards of `per_shard` samples each, cycling through `images`."""
    for shard in range(shards):
        members = []
        for number in range(shard * per_shard, (shard + 1) * per_shard):
            key = f"n{1440764 + number % 1000:08}/n{1440764 + number % 1000:08}_{number}"
            members += [(f"{key}.cls", b"%d" % (number % 1000)), (f"{key}.jpg", images[number % len(images)])]
        write_tar(folder / f"train-{shard:06}.tar", members)


def large_set(shards: int) -> Path:
    """Return indexed shards of a thousand small images each; they are links to three shards, as only indexes are read."""

    def fill(folder: Path) -> None:
        contents = list_shards(small_images(1000))
        for shard in range(shards):
            (folder / f"train-{shard:06}.tar").symlink_to(contents[shard % len(contents)])
        open_index(folder, progress=False)

    return kept_folder(f"index_{shards}_shards", fill)


if __name__ == "__main__":
    main()
