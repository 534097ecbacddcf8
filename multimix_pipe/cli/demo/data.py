"""What the demo trains on: generated shapes, somebody's images packed into shards, or shards as they are."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimix_pipe.cli.classes import class_names
from multimix_pipe.errors import ConfigError
from multimix_pipe.shards.index import Index, open_index
from multimix_pipe.shards.pack import pack
from multimix_pipe.shards.pack.imagefolder import SPLITS

HELD_OUT = 0.1
"""Part of the samples to evaluate on where the data have no split for it."""


@dataclass(frozen=True)
class DemoData:
    """Shards to train on and to evaluate on. Where they are the same, `held_out` are the samples to evaluate on."""

    what: str
    train: str
    test: str
    held_out: list[str] | None
    train_count: int
    test_count: int
    classes: list[str]


def prepare_data(
    data: str | None, test_data: str | None, out: Path, shapes: tuple[int, int], *, progress: bool = True
) -> DemoData:
    """Make, pack or find the data. `shapes`: images of each class to train on and to evaluate on, if they are made."""
    if data is None:
        if test_data is not None:
            raise ConfigError("--test-data needs --data, the shards to train on")
        return _made(out, *shapes, progress)
    source, what = Path(data), data
    if not _holds_shards(data):
        pack(source, out / "shards", progress=progress)
        data = str(out / "shards")
    train, test = (data, test_data) if test_data is not None else _splits(data)
    return _described(what, train, test, progress)


def _made(out: Path, train: int, test: int, progress: bool) -> DemoData:
    from multimix_pipe.cli.demo.shapes import write_shapes

    folder = out / "shapes"
    write_shapes(folder / "images", train, test, progress=progress)
    pack(folder / "images", folder / "shards", progress=progress)
    return _described("generated shapes", *_splits(str(folder / "shards")), progress)


def _holds_shards(data: str) -> bool:
    """Whether `data` names shards; else it is a folder or zip of images, or a mistake that packing will explain."""
    path = Path(data)
    if path.is_dir():
        return any(path.glob("*.tar")) or any(path.glob("*/*.tar"))
    return not zipfile.is_zipfile(path)


def _splits(data: str) -> tuple[str, str | None]:
    """What to train and to evaluate on: folders of splits as `pack` writes them, else all, and nothing."""
    folder = Path(data)
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return data, None
    found = [split for split in SPLITS if any((folder / split).glob("*.tar"))]
    if "train" not in found:
        raise ConfigError(
            f"{data}: required shards, or folders of them named train and test; found {', '.join(found) or 'neither'}"
        )
    others = [split for split in ("test", "val", "valid", "validation") if split in found]
    return os.path.join(data, "train"), os.path.join(data, others[0]) if others else None


def _described(what: str, train: str, test: str | None, progress: bool) -> DemoData:
    index = open_index(train, progress=progress)
    names = class_names(index)
    if test is not None:
        of_test = open_index(test, progress=progress)
        names = max(names, class_names(of_test), key=len)
        return DemoData(what, train, test, None, len(index), len(of_test), names)
    held_out = _hold_out(index)
    return DemoData(what, train, train, held_out, len(index) - len(held_out), len(held_out), names)


def _hold_out(index: Index) -> list[str]:
    """A tenth of the samples, the same ones each time."""
    if len(index) < 2:
        raise ConfigError(f"at least 2 samples are required, to train on and to evaluate on; found {len(index)}")
    count = max(1, round(HELD_OUT * len(index)))
    chosen = np.random.default_rng(0).permutation(len(index))[:count]
    return [index.full_key(int(number)) for number in np.sort(chosen)]
