"""The index: where each sample of a set of shards lies, as NumPy columns."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimix_pipe.config import check_int, check_label
from multimix_pipe.errors import ShardError, printable
from multimix_pipe.shards.index.build import build_indexes
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS, LABEL_PROBLEMS, PROBLEMS, Table
from multimix_pipe.shards.index.store import index_name, load_table, locked_folder
from multimix_pipe.shards.listing import list_shards
from multimix_pipe.shards.progress import Progress

__all__ = ["LABEL_PROBLEMS", "PROBLEMS", "Index", "open_index"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Index:
    """All N samples of a set of shards, in the order of the shards, then of the tar.

    A sample is all members of one key; its position in these columns is its id, 0..N-1.
    """

    shards: tuple[Path, ...]
    """Absolute paths."""
    shard: npt.NDArray[np.int32]
    """(N,) position in `shards`."""
    offset: npt.NDArray[np.int64]
    """(N,) byte of the shard at which the encoded image starts."""
    size: npt.NDArray[np.int64]
    """(N,) bytes of the encoded image."""
    label: npt.NDArray[np.int64]
    """(N,) class id; -1 where the problem is the label."""
    width: npt.NDArray[np.int32]
    """(N,) pixels as stored, before EXIF; 0 where the header cannot be read."""
    height: npt.NDArray[np.int32]
    """(N,) likewise."""
    orientation: npt.NDArray[np.uint8]
    """(N,) EXIF orientation 1..8; 1 where there is none."""
    problem: npt.NDArray[np.uint8]
    """(N,) 0, or a code in PROBLEMS."""
    key_buffer: bytes
    """All keys in UTF-8, one after the other."""
    key_start: npt.NDArray[np.int64]
    """(N + 1,) key i is `key_buffer[key_start[i]:key_start[i + 1]]`."""
    without_image: int
    """Samples of the shards that are left out because they have no image."""
    stamps: tuple[tuple[int, int], ...]
    """Bytes and modification time in ns of each shard, as it was indexed."""
    damage: tuple[tuple[Path, str], ...] = ()
    """Shards that cannot be read to their end, and why: of these the samples before that are here."""

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, i: int) -> str:
        """The webdataset `__key__` of sample i."""
        return self.key_buffer[self.key_start[i] : self.key_start[i + 1]].decode("utf-8", "surrogateescape")

    def keys(self, ids: Iterable[int]) -> list[str]:
        """The keys of the samples `ids`, in that order."""
        return [self.key(i) for i in ids]

    def each_key(self) -> Iterator[str]:
        """The keys of all samples, in order; three times as fast as `key` of each."""
        for start, end in pairwise(self.key_start.data):
            yield self.key_buffer[start:end].decode("utf-8", "surrogateescape")

    def full_key(self, i: int) -> str:
        """`shard.tar : key` of sample i, as `exclude=` and `samples=` take it."""
        return f"{self.shards[self.shard[i]].name} : {self.key(i)}"

    def name(self, i: int) -> str:
        """Sample i as messages name it: its full key, printable."""
        return printable(self.full_key(i))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the data: base names of the shards, offsets, sizes and labels; not the place where they are."""
        digest = hashlib.sha256("\n".join(shard.name for shard in self.shards).encode("utf-8", "surrogateescape"))
        for column in (self.shard, self.offset, self.size, self.label):
            digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()


def open_index(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    label: str = "cls",
    cache_dir: str | PathLike[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
    rebuild: bool = False,
    keep_damaged: bool = False,
) -> Index:
    """The index of the shards that `source` names (see `list_shards`).

    Index files are read where they fit their shard by size and time, and built where not: in `workers` processes (None:
    one a usable core), with progress on stderr. They lie beside the shards, or where that folder cannot be written
    in `cache_dir` (None: the user's cache). `label` is "cls", or "json:KEY" for an integer field of the sample's .json
    member. `rebuild` builds all of them anew. Of shards that are cut or damaged `keep_damaged` keeps the samples before that.

    Raises ConfigError for arguments that cannot be meant, ShardError where a shard is missing, damaged (unless
    `keep_damaged`) or no plain tar, or where no sample in all of them has an image, MultiMixError where an index cannot be
    written.
    """
    check_label(label)
    if workers is not None:
        check_int("workers", workers, 1)
    shards = list_shards(source, cache_dir, progress=progress)
    tables = {shard: None if rebuild else load_table(shard, label, cache_dir) for shard in shards}
    missing = [shard for shard, table in tables.items() if table is None]
    with Progress("indexing", total=len(missing), unit="shard", disable=not progress or not missing) as bar:
        for folder, group in groupby(sorted(missing, key=lambda shard: shard.parent), key=lambda shard: shard.parent):
            tables.update(_build_folder(folder, list(group), label, cache_dir, workers, rebuild, bar))
    found = [table for table in tables.values() if table is not None]
    index = _join(shards, found)
    if index.damage and not (keep_damaged and len(index)):
        raise ShardError(index.damage[0][1])
    if not len(index):
        raise ShardError(_nothing_found(source, found))
    if index.without_image:
        log.info("%d samples have no member %s and are left out", index.without_image, "|".join(IMAGE_EXTENSIONS))
    return index


def _build_folder(
    folder: Path,
    shards: list[Path],
    label: str,
    cache_dir: str | PathLike[str] | None,
    workers: int | None,
    rebuild: bool,
    bar: Progress,
) -> dict[Path, Table]:
    with locked_folder(folder, cache_dir) as place:
        # another process may have built them while this one waited
        tables = {shard: None if rebuild else load_table(shard, label, cache_dir) for shard in shards}
        jobs = [(shard, label, place / index_name(shard, label)) for shard, table in tables.items() if table is None]
        bar.update(len(shards) - len(jobs))
        build_indexes(jobs, workers=workers, done=bar.update)
        built = {shard: table or load_table(shard, label, cache_dir) for shard, table in tables.items()}
    for shard, table in built.items():
        if table is None:
            raise ShardError(f"{shard} changed while it was indexed; wait until it is written, then try again")
    return {shard: table for shard, table in built.items() if table is not None}


def _join(shards: tuple[Path, ...], tables: list[Table]) -> Index:
    counts = [len(table.rows) for table in tables]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([table.rows[name] for table in tables])

    key_start = np.zeros(sum(counts) + 1, np.int64)
    np.cumsum(column("key_size"), out=key_start[1:])
    return Index(
        shards=shards,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        offset=column("offset"),
        size=column("size"),
        label=column("label"),
        width=column("width"),
        height=column("height"),
        orientation=column("orientation"),
        problem=column("problem"),
        key_buffer=b"".join(table.keys for table in tables),
        key_start=key_start,
        without_image=sum(table.without_image for table in tables),
        stamps=tuple((table.shard_size, table.mtime_ns) for table in tables),
        damage=tuple((shard, table.damage) for shard, table in zip(shards, tables, strict=True) if table.damage),
    )


def _nothing_found(source: object, tables: list[Table]) -> str:
    extensions: Counter[str] = Counter()
    for table in tables:
        extensions.update(table.extensions)
    seen = ", ".join(f"{count} .{extension}" for extension, count in extensions.most_common(8)) or "no members at all"
    wanted = ", ".join("." + extension for extension in IMAGE_EXTENSIONS)
    return f"{source}: no sample with an image in {len(tables)} shards; required a member {wanted}, found {seen}"
