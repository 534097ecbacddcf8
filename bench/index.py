"""How fast is an index built against wds2idx, on one core, and what does opening one of 1.28 million samples cost?

    python bench/index.py [--shards FOLDER]

Both read the same shards, in the page cache, into files of a temporary folder. Ours holds label, width, height and orientation of
every image too. wds2idx comes with the wheel of NVIDIA DALI; with GNU tar at hand it has that read the headers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from data import add_shards, generated_shards
from PIL import Image

from multimix_pipe.benchmark.harness import Figures, in_turn, parser, report, seconds
from multimix_pipe.shards import list_shards
from multimix_pipe.shards.index.build import build_one
from multimix_pipe.shards.index.scan import ROW, Table, scan_shard
from multimix_pipe.shards.index.store import VERSION, index_name, save_table

IMAGENET, SHARDS = 1_281_167, 1282
WITH_TAR, IN_PYTHON = "wds2idx with GNU tar", "wds2idx in Python"


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--samples", type=int, default=IMAGENET, help="of the index that is opened")
    args = arguments.parse_args()
    results: dict[str, Any] = {"missing": missing_peers()}
    for name, reason in results["missing"].items():
        print(f"{name}: missing: {reason}")
    sets = {"own shards": args.shards} if args.shards else {"photos": photos(), "small images": small_images()}
    for name, folder in sets.items():
        shards = list_shards(folder)
        print(f"\nbuilding: {name}, {len(shards)} shards, {sum(shard.stat().st_size for shard in shards) / 1e6:.0f} MB")
        figures = building(shards, results["missing"], args.rounds)
        print(figures.table())
        results[f"building, {name}"] = figures.summary()
    print(f"\nopening: {args.samples:,} samples in {SHARDS} shards, a fresh process each time")
    for unit, figures in opening(large_index(args.samples), args.rounds).items():
        print(figures.table())
        results[f"opening, {unit}"] = figures.summary()
    report((__doc__ or "").splitlines()[0], results, args.json)


def missing_peers() -> dict[str, str]:
    """The peers that cannot run here, and why."""
    try:
        import wds2idx  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        return dict.fromkeys((WITH_TAR, IN_PYTHON), f"{error}; it comes with nvidia-dali-cuda120 or -cuda130")
    return {} if shutil.which("tar") else {WITH_TAR: "there is no tar on the PATH"}


def building(shards: tuple[Path, ...], missing: dict[str, str], rounds: int) -> Figures:
    """Samples a second on one core, everything that a contender starts on that core too."""
    samples = sum(len(scan_shard(shard, "cls").rows) for shard in shards)  # brings them into the page cache too
    work: dict[str, Callable[[Path], None]] = {"multimix-pipe index": lambda out: run_ours(shards, out)}
    if IN_PYTHON not in missing:
        import wds2idx

        if WITH_TAR not in missing:
            work[WITH_TAR] = lambda out: run_wds2idx(wds2idx, shards, out)
        work[IN_PYTHON] = lambda out: run_wds2idx_in_python(wds2idx, shards, out)

    def samples_a_second(name: str) -> float:
        # a folder of its own: to replace a file takes the file system longer than to make one
        with tempfile.TemporaryDirectory(prefix="multimix_bench_") as folder:
            taken = seconds(lambda: work[name](Path(folder)))
            if name != "multimix-pipe index":
                check_samples(Path(folder), samples)
        return samples / taken

    peer = next((name for name in (WITH_TAR, IN_PYTHON) if name in work), "multimix-pipe index")
    contenders = {name: (lambda name=name: samples_a_second(name)) for name in work}
    with one_core():
        return in_turn(contenders, unit="samples/s", peer=peer, rounds=rounds)


def run_ours(shards: tuple[Path, ...], out: Path) -> None:
    for shard in shards:
        build_one(shard, "cls", out / index_name(shard, "cls"))


def check_samples(out: Path, samples: int) -> None:
    """Say so where wds2idx counts other samples: it groups neighbours only, and takes those without an image."""
    found = sum(int(path.read_text().split(maxsplit=2)[1]) for path in out.glob("*.idx"))
    if found != samples:
        print(f"wds2idx finds {found} samples, {samples} have an image: they do not do the same work")


@contextlib.contextmanager
def one_core() -> Any:
    """Keep this process, and those that it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def run_wds2idx(wds2idx: ModuleType, shards: tuple[Path, ...], out: Path) -> None:
    """As its command does, less the start of Python for each shard."""
    for shard in shards:
        creator = wds2idx.IndexCreator(str(shard), str(out / f"{shard.stem}.idx"), verbose=False)
        creator.create_index()
        creator.close()


def run_wds2idx_in_python(wds2idx: ModuleType, shards: tuple[Path, ...], out: Path) -> None:
    """The same where there is no GNU tar, of which it warns."""
    with mock.patch.object(wds2idx, "which", return_value=None), contextlib.redirect_stderr(io.StringIO()):
        run_wds2idx(wds2idx, shards, out)


def opening(folder: Path, rounds: int) -> dict[str, Figures]:
    """Seconds and megabytes of each part, by unit."""
    figures = {"s": Figures("s", "open_index"), "MB": Figures("MB", "kept")}
    script = Path(__file__).with_name("index_opening.py")
    for turn in range(rounds + 1):
        done = subprocess.run([sys.executable, script, folder], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        for unit, name in (("s", "seconds"), ("MB", "megabytes")):
            for part, value in found[name].items():
                figures[unit].values.setdefault(part, [])
                if turn:
                    figures[unit].values[part].append(value)
    return figures


def photos(count: int = 3000, shards: int = 3) -> Path:
    """Generated photos, each several times under another key, in shards of a thousand as ImageNet's."""
    images = []
    for shard in list_shards(generated_shards()):
        with tarfile.open(shard) as tar:
            images += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    return repeated_images("photos", images, count, shards)


def small_images(count: int = 30_000, shards: int = 3) -> Path:
    """JPEG images of 32x32 pixels, as CIFAR's."""
    images = []
    for number in range(500):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((32, 32)).save(buffer, "JPEG", quality=95)
        images.append(buffer.getvalue())
    return repeated_images("small", images, count, shards)


def repeated_images(name: str, images: list[bytes], count: int, shards: int) -> Path:
    """`count` samples of `images` in turn, in a temporary folder that is kept."""
    folder = Path(tempfile.gettempdir()) / f"multimix_bench_index_{name}_{count}"
    if folder.exists():
        return folder
    partial = Path(tempfile.mkdtemp(prefix="multimix_bench_"))
    for shard in range(shards):
        with tarfile.open(partial / f"train-{shard:06}.tar", "w") as tar:
            for number in range(shard * count // shards, (shard + 1) * count // shards):
                key = f"n{1440764 + number % 1000:08}/n{1440764 + number % 1000:08}_{number}"
                for extension, data in (("cls", b"%d" % (number % 1000)), ("jpg", images[number % len(images)])):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    partial.rename(folder)
    return folder


def large_index(count: int) -> Path:
    """An index of `count` samples as the store writes it, beside shards that have their size and no content."""
    folder = Path(tempfile.gettempdir()) / f"multimix_bench_index_{count}_version{VERSION}"
    if folder.exists():
        return folder
    partial = Path(tempfile.mkdtemp(prefix="multimix_bench_"))
    draw = np.random.default_rng(0)
    for number, ids in enumerate(np.array_split(np.arange(count), SHARDS)):
        rows = np.zeros(len(ids), ROW)
        rows["size"], rows["label"] = draw.integers(40_000, 180_000, len(ids)), draw.integers(0, 1000, len(ids))
        rows["offset"] = 512 + np.cumsum(rows["size"] + 2048) - rows["size"]
        rows["width"], rows["height"], rows["orientation"] = 500, 375, 1
        synsets = (1440764 + rows["label"]).tolist()
        keys = [b"n%08d/n%08d_%d" % (synset, synset, i) for synset, i in zip(synsets, ids.tolist(), strict=True)]
        rows["key_size"] = [len(key) for key in keys]
        shard = partial / f"train-{number:06}.tar"
        shard.touch()
        os.truncate(shard, int(rows["offset"][-1] + rows["size"][-1]))
        stat = shard.stat()
        counts = {"cls": len(ids), "jpg": len(ids)}
        table = Table(rows, b"".join(keys), stat.st_size, stat.st_mtime_ns, without_image=0, extensions=counts)
        save_table(shard.with_name(index_name(shard, "cls")), table, "cls")
    partial.rename(folder)
    return folder


if __name__ == "__main__":
    main()
