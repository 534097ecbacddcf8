"""The record that `pack` leaves beside its shards, which tells an interrupted run and a partial copy from a whole set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from multimix_pipe.errors import counted
from multimix_pipe.shards.classes import CLASSES

RUN = "pack.json"
"""Name of the file; "images" is their number, "shards" that of the shards, once all are written (not by early versions)."""


def incomplete(
    source: str | PathLike[str] | Sequence[str | PathLike[str]], shards: Sequence[Path], samples: Iterable[int]
) -> Iterator[tuple[Path, str]]:
    """Yield each folder of `shards` that lacks shards of its `pack`, and why; `samples` counts those in each shard.

    Shards that were copied away are missed only where `source` names the folder, not single shards of it.
    """
    found: dict[str, list[int]] = {}
    for shard, count in zip(shards, samples, strict=True):
        found.setdefault(os.path.dirname(shard), []).append(count)  # Path.parent takes ten times as long
    sources = [source] if isinstance(source, (str, PathLike)) else source
    whole = {Path(item).absolute() for item in sources if Path(item).is_dir()}
    for folder, counts in ((Path(name), counts) for name, counts in found.items()):
        try:
            run = json.loads((folder / RUN).read_bytes())
            images, written = int(run["images"]), run.get("shards")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        here = len(counts)
        if written is None and not (folder / CLASSES).exists():  # `pack` writes it behind the last shard
            lack = (
                f"required {CLASSES}, which comes last, and found none; all {counted(images, 'image')} are there"
                if sum(counts) == images
                else f"required {counted(images, 'image')}, found {sum(counts):,} in its shards"
            )
            yield folder, f"{folder}: `multimix-pipe pack` did not finish: {lack}; run it again, or wait for it"
        elif written is None and folder in whole and sum(counts) < images:
            yield (
                folder,
                f"{folder}: required the {counted(images, 'image')} that `multimix-pipe pack` wrote, found {sum(counts):,}; "
                "copy the other shards, or name the shards to use",
            )
        elif folder in whole and isinstance(written, int) and here < written:
            yield (
                folder,
                f"{folder}: required the {counted(written, 'shard')} that `multimix-pipe pack` wrote, found {here:,}; copy "
                "the others, or name the shards to use",
            )
