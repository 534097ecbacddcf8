"""How fast is building an index compared to wds2idx, on one core, and what does opening one of 1.28 million samples cost?

    python bench/index.py [--shards FOLDER] [--opened 1282]

Both read the same shards from the page cache and write to a temporary folder: --shards, or images of 110 KB and of about 1 KB.
Our index also holds each image's label, width, height and orientation. wds2idx comes with the NVIDIA DALI wheel and reads the
headers with GNU tar. Opening is measured on --opened shards of a thousand samples each, in a fresh process per round.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import kept_folder, open_backend, padded_shards, write_shards
from harness import Figures, in_a_new_process, in_turn, parser, report, resident_memory, seconds
from multimix_pipe.shards import list_shards, open_index
from multimix_pipe.shards.index.build import build_one
from multimix_pipe.shards.index.scan import scan_shard
from multimix_pipe.shards.index.store import index_name

SHARDS = 1282
"""Number of shards of ImageNet at a thousand samples each."""
OURS, PEER = "multimix-pipe index", "wds2idx with GNU tar"


def main() -> None:
    args = parser(__doc__, shards=True, opened=SHARDS).parse_args()
    missing = None if find_spec("wds2idx") and shutil.which("tar") else "needs nvidia-dali-cuda120 or -cuda130, and tar"
    if missing:
        print(f"{PEER}: missing: {missing}")
    results: dict[str, Any] = {"missing": missing}
    sets = {"own shards": args.shards}
    if args.shards is None:
        sets = {"padded images": padded_shards(3000, 3), "small images": small_images()}
    for name, folder in sets.items():
        shards = list_shards(folder)
        print(f"\nbuilding: {name}, {len(shards)} shards, {sum(shard.stat().st_size for shard in shards) / 1e6:.0f} MB")
        figures = building(shards, args.rounds, with_peer=not missing)
        print(figures.table())
        results[f"building, {name}"] = figures.summary()
    print(f"\nopening: {args.opened:,} shards of a thousand samples, a fresh process each time")
    large = large_set(args.opened)
    contenders = {work.__name__: partial(in_a_new_process, work, large) for work in (opening_index, opening_loader)}
    times = in_turn(contenders, unit="s", peer="opening_index", rounds=args.rounds)
    kept = in_a_new_process(memory, large)
    print(f"{times.table()}\nmemory of the index: {kept:.0f} MB")
    report(__doc__, {**results, "opening": times.summary(), "kept_mb": kept}, args.json)


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


def opening_index(folder: Path) -> float:
    return seconds(lambda: open_index(folder, progress=False))


def opening_loader(folder: Path) -> float:
    """Return the seconds that opening a loader takes, its index included."""
    return seconds(lambda: open_backend("torch", shards=folder, batch_size=256))


def memory(folder: Path) -> float:
    """Return the MB that an open index keeps."""
    before = resident_memory()
    index = open_index(folder, progress=False)
    return resident_memory() - before if len(index) else 0.0


def small_images(samples: int = 30_000) -> Path:
    """Return a kept folder of three shards of 32x32 JPEGs, the size of CIFAR's images."""
    images = []
    for number in range(500):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((32, 32)).save(buffer, "JPEG", quality=95)
        images.append(buffer.getvalue())
    return kept_folder(f"small_{samples}", lambda folder: write_shards(folder, images, samples, 3))


def large_set(shards: int) -> Path:
    """Return indexed shards of a thousand small images each; they are links to three shards, as only indexes are read."""

    def fill(folder: Path) -> None:
        contents = list_shards(small_images(3000))
        for shard in range(shards):
            (folder / f"train-{shard:06}.tar").symlink_to(contents[shard % len(contents)])
        open_index(folder, progress=False)

    return kept_folder(f"index_{shards}_shards", fill)


if __name__ == "__main__":
    main()
