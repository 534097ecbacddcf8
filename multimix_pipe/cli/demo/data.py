"""The demo's data: generated shapes, the user's images packed into shards, or existing shards."""

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
"""Fraction of the samples held out for evaluation if the data has no test split."""


@dataclass(frozen=True)
class DemoData:
    """Training and test shards. If both are the same shards, `held_out` names the samples to evaluate on."""

    what: str
    """Description for people, or the path or URL of the data."""
    train: str
    test: str
    held_out: list[str] | None
    train_count: int
    test_count: int
    classes: list[str]


def prepare_data(
    data: str | None, test_data: str | None, out: Path, shapes: tuple[int, int], *, progress: bool = True
) -> DemoData:
    """Generate, pack or find the data.

    Args:
        data: shards, or a folder or zip of images to pack; None generates shapes.
        test_data: shards to evaluate on; None uses the test split of `data`, or holds samples out.
        out: the folder to write to.
        shapes: the number of training and test images per class, if shapes are generated.
        progress: whether to show progress on stderr.
    """
    if data is None:
        if test_data is not None:
            raise ConfigError("--test-data needs --data, the shards to train on")
        return _generate(out, *shapes, progress)
    source, what = Path(data), data
    if not _holds_shards(data):
        pack(source, out / "shards", progress=progress)
        data = str(out / "shards")
    train, test = (data, test_data) if test_data is not None else _splits(data)
    return _describe(what, train, test, progress)


def _generate(out: Path, train: int, test: int, progress: bool) -> DemoData:
    from multimix_pipe.cli.demo.shapes import write_shapes

    folder = out / "shapes"
    write_shapes(folder / "images", train, test, progress=progress)
    pack(folder / "images", folder / "shards", progress=progress)
    return _describe("generated shapes", *_splits(str(folder / "shards")), progress)


def _holds_shards(data: str) -> bool:
    """Return whether `data` names shards; otherwise `pack` handles it, or explains why it cannot."""
    path = Path(data)
    if path.is_dir():
        return any(path.glob("*.tar")) or any(path.glob("*/*.tar"))
    return not zipfile.is_zipfile(path)


def _splits(data: str) -> tuple[str, str | None]:
    """Return the training and test shards: the split folders that `pack` writes, or all of `data` and None."""
    folder = Path(data)
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return data, None
    found = [split for split in SPLITS if any((folder / split).glob("*.tar"))]
    if "train" not in found:
        raise ConfigError(
            f"{data}: must hold shards, or folders of shards named train and test; found {', '.join(found) or 'neither'}"
        )
    tests = [split for split in ("test", "val", "valid", "validation") if split in found]
    return os.path.join(data, "train"), os.path.join(data, tests[0]) if tests else None


def _describe(what: str, train: str, test: str | None, progress: bool) -> DemoData:
    index = open_index(train, progress=progress)
    names = class_names(index)
    if test is not None:
        test_index = open_index(test, classes=index.classes, progress=progress)
        names = max(names, class_names(test_index), key=len)
        return DemoData(what, train, test, None, len(index), len(test_index), names)
    held_out = _hold_out(index)
    return DemoData(what, train, train, held_out, len(index) - len(held_out), len(held_out), names)


def _hold_out(index: Index) -> list[str]:
    """Return the names of the held-out samples, the same ones each time."""
    if len(index) < 2:
        raise ConfigError(f"at least 2 samples are required, one for training and one for testing; found {len(index)}")
    count = max(1, round(HELD_OUT * len(index)))
    chosen = np.random.default_rng(0).permutation(len(index))[:count]
    return [index.full_key(int(number)) for number in np.sort(chosen)]
