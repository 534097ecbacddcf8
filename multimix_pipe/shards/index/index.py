"""The index of a set of shards as NumPy columns, and opening it."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from multimix_pipe.config import check_int, check_label
from multimix_pipe.errors import ConfigError, ShardError, counted, printable, redacted
from multimix_pipe.shards.classes import Classes, common_classes, read_mapping
from multimix_pipe.shards.index.build import build_indexes
from multimix_pipe.shards.index.labels import NO_LABELS, SEVERAL
from multimix_pipe.shards.index.problems import (
    FINE,
    LABEL_NOT_INT,
    LABEL_PROBLEMS,
    LABEL_RANGE,
    NO_IMAGE,
    NO_LABEL,
    NOTED,
    PROBLEMS,
    UNKNOWN_CLASS,
)
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS, Table
from multimix_pipe.shards.index.sets import LabelSets, looks_several, translate_sets
from multimix_pipe.shards.index.store import index_name, load_table, locked_folder
from multimix_pipe.shards.listing import distinct_names, list_shards
from multimix_pipe.shards.packed import incomplete
from multimix_pipe.shards.progress import Progress

__all__ = ["LABEL_PROBLEMS", "PROBLEMS", "Index", "open_index"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Index:
    """All N samples of a set of shards, ordered by shard, then by position in the tar.

    A sample is all members with the same key. Its id is its position in these columns, 0..N-1.
    """

    shards: tuple[Path, ...]
    """Absolute paths."""
    shard: npt.NDArray[np.int32]
    """(N,) position in `shards`."""
    offset: npt.NDArray[np.int64]
    """(N,) first byte of the encoded image in the shard."""
    size: npt.NDArray[np.int64]
    """(N,) size of the encoded image in bytes."""
    label: npt.NDArray[np.int64]
    """(N,) class id; -1 without a valid label. Where samples may have several labels, the number of a set in `sets`."""
    width: npt.NDArray[np.int32]
    """(N,) width in pixels as stored, before EXIF orientation is applied; 0 if the header cannot be read."""
    height: npt.NDArray[np.int32]
    """(N,) height in pixels, likewise."""
    orientation: npt.NDArray[np.uint8]
    """(N,) EXIF orientation, 1..8; 1 if there is none."""
    problem: npt.NDArray[np.uint8]
    """(N,) 0, or a code in `PROBLEMS`."""
    key_buffer: bytes
    """The keys in UTF-8, concatenated."""
    key_start: npt.NDArray[np.int64]
    """(N + 1,) the key of sample i is `key_buffer[key_start[i] : key_start[i + 1]]`."""
    without_image: int
    """Number of samples that are left out because they have no image."""
    stamps: tuple[tuple[int, int], ...]
    """Size in bytes and modification time in ns of each shard when it was indexed."""
    damage: tuple[tuple[Path, str], ...] = ()
    """Damaged shards, and folders that `pack` did not fill, each with the reason; what is there of them is in the index."""
    classes: tuple[str, ...] | None = None
    """Class names by class id, if known."""
    notes: tuple[str, ...] = ()
    note: npt.NDArray[np.int32] | None = None
    """(N,) position in `notes` of what was found, or -1; None if there are no notes."""

    sets: LabelSets | None = None
    """The sets of labels if samples may have several; None otherwise."""

    def __len__(self) -> int:
        return len(self.offset)

    def labels(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """Return the class ids (B,) int64 of samples, or rows (B, num_classes) float32 of 0 and 1 if they may have several.

        A sample without a valid label has -1, or a row of 0.
        """
        found = self.label[sample_ids]
        return found if self.sets is None else self.sets.rows(found)

    @property
    def class_ids(self) -> npt.NDArray[np.int64]:
        """The class ids that samples have, in ascending order."""
        if self.sets is not None:
            return np.flatnonzero(np.bincount(self.sets.ids))
        return np.unique(self.label[self.label >= 0])

    def class_counts(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Return how many usable samples have each class: (num_classes,), or longer if there are larger ids."""
        found = self.label[(self.problem == FINE) & (self.label >= 0)]
        counts = np.bincount(found) if self.sets is None else self.sets.counts(found)
        return np.pad(counts, (0, max(0, num_classes - len(counts))))

    def key(self, sample_id: int) -> str:
        """Return the webdataset `__key__` of a sample."""
        start, stop = self.key_start[sample_id], self.key_start[sample_id + 1]
        return self.key_buffer[start:stop].decode("utf-8", "surrogateescape")

    def keys(self, sample_ids: Iterable[int]) -> list[str]:
        """Return the keys of `sample_ids`, in that order."""
        return [self.key(sample_id) for sample_id in sample_ids]

    def each_key(self) -> Iterator[str]:
        """Yield the keys of all samples in order, three times as fast as calls of `key`."""
        for start, end in pairwise(self.key_start.data):
            yield self.key_buffer[start:end].decode("utf-8", "surrogateescape")

    def full_key(self, sample_id: int) -> str:
        """Return `shard.tar : key` of a sample, a name that `exclude=` and `samples=` accept."""
        return f"{self.shard_names[self.shard[sample_id]]} : {self.key(sample_id)}"

    @cached_property
    def shard_names(self) -> tuple[str, ...]:
        """The shards' base names, with as many folders before them as it takes to tell shards of one name apart."""
        return distinct_names(self.shards)

    def name(self, sample_id: int) -> str:
        """Return the full key of a sample for messages, with unprintable characters escaped."""
        return printable(self.full_key(sample_id))

    def reason(self, sample_id: int) -> str:
        """Return what is wrong with a sample and what was found; it must have a problem."""
        text, note = PROBLEMS[int(self.problem[sample_id])], self._note_of(sample_id)
        if note is None:
            return text
        is_label = self.problem[sample_id] in (LABEL_NOT_INT, UNKNOWN_CLASS)
        several = is_label and looks_several(note, self.classes or ())
        hint = " (several labels, or none, need multilabel=True)" * several
        return printable(f"{text}; found {repr(note) if is_label else note}{hint}")

    def other_labels(self, sample_id: int) -> list[str]:
        """Return which `label` of `open_index` might find a label of a sample that has none: "txt", "json:KEY", "folder"."""
        if self.problem[sample_id] != NO_LABEL:
            return []
        members = (self._note_of(sample_id) or "").partition(";")[0].removeprefix("the members ").split(", ")
        others = [label for label in ("cls", "txt", "json:KEY") if "." + label.removesuffix(":KEY") in members]
        return others + ["folder"] * ("/" in self.key(sample_id).removeprefix("./"))

    def _note_of(self, sample_id: int) -> str | None:
        found = -1 if self.note is None else int(self.note[sample_id])
        return None if found < 0 else self.notes[found]

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the shards' base names and of all offsets, sizes and labels; it does not depend on the folder."""
        digest = hashlib.sha256("\n".join(shard.name for shard in self.shards).encode("utf-8", "surrogateescape"))
        for column in (self.shard, self.offset, self.size, self.label):
            digest.update(column.astype("<i8").tobytes())
        if self.sets is not None:
            digest.update(self.sets.start.astype("<i8").tobytes() + self.sets.ids.astype("<i8").tobytes())
        return digest.hexdigest()


def open_index(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    label: str | None = "cls",
    classes: Classes | None = None,
    label_offset: int = 0,
    multilabel: bool = False,
    num_classes: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
    rebuild: bool = False,
    keep_damaged: bool = False,
) -> Index:
    """Return the index of the shards in `source` (see `list_shards`).

    The index file of a shard is used if it records the shard's current size and modification time, and built otherwise, in
    `workers` processes (None: one per usable core), with progress on stderr. Index files are next to the shards, or in
    `cache_dir` (None: the user's cache) if that folder is not writable. `rebuild` ignores existing index files. `keep_damaged`
    keeps the samples of a cut or damaged shard that precede the damage, and those of an interrupted `pack`.

    `label` names where a sample's label is: "cls" or "txt" for the member of that extension, "json:KEY" for a field of its
    .json member, "folder" for the last folder in its key, None for no labels (all -1). A label is an integer, from which
    `label_offset` is subtracted, or one of `classes` (names in the order of their ids, or a mapping from name to id); folders
    are always names. By default the classes are those of the classes.json beside the shards for "cls", "txt" and "folder", and
    for "folder" else the sorted folders.

    With `multilabel`, a sample may have any number of labels, see `translate_sets`: `num_classes` says how many 0 and 1 a list
    in JSON must have to be taken for a vector. Default: the number of names, else that of the labels.

    Raises ConfigError for invalid arguments and shards whose classes.json differs from `classes` or another one, ShardError if
    a shard is missing, damaged (unless `keep_damaged`) or not a plain tar, or if no sample has an image, and MultiMixError if
    an index cannot be written.
    """
    check_label(label)
    check_int("label_offset", label_offset, 0)
    ids, names = read_mapping(classes)
    if workers is not None:
        check_int("workers", workers, 1)
    shards = list_shards(source, cache_dir, progress=progress)
    spec = NO_LABELS if label is None else label
    if spec in ("cls", "txt", "folder"):
        names = common_classes(shards, names)
    if multilabel:
        if spec in (NO_LABELS, "folder"):
            raise ConfigError(f'multilabel=True needs label="cls", "txt" or "json:KEY"; found label={label!r}')
        spec = SEVERAL + spec
    tables = {shard: None if rebuild else load_table(shard, spec, cache_dir) for shard in shards}
    missing = [shard for shard, table in tables.items() if table is None]
    with Progress("indexing", total=len(missing), unit="shard", disable=not progress or not missing) as bar:
        for folder, group in groupby(sorted(missing, key=lambda shard: shard.parent), key=lambda shard: shard.parent):
            tables.update(_build_folder(folder, list(group), spec, cache_dir, workers, rebuild, bar))
    found = [table for table in tables.values() if table is not None]
    index = _join(shards, found)
    if multilabel:
        width = len(names) if num_classes is None and names is not None else num_classes
        index = translate_sets(index, spec.startswith(SEVERAL + "json:"), width, _ids_of(ids, names), label_offset)
    elif index.note is not None or label_offset or spec == "folder":
        if spec == "folder" and names is None and index.note is not None:
            names = tuple(sorted({index.notes[i] for i in np.unique(index.note[index.problem == LABEL_NOT_INT])}))
        index = _translate(index, _ids_of(ids, names), label_offset)
    samples = (len(table.rows) for table in found)
    index = replace(index, classes=names, damage=index.damage + tuple(incomplete(source, shards, samples)))
    if index.damage and not (keep_damaged and len(index)):
        raise ShardError(index.damage[0][1])
    if not len(index) or (index.problem == NO_IMAGE).all():
        raise ShardError(_nothing_found(source, found))
    if index.without_image:
        groups = counted(index.without_image, "group")
        log.info("%s of members without an image and a label are left out", groups)
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
        # another process may have built them while this one waited for the lock
        tables = {shard: None if rebuild else load_table(shard, label, cache_dir, again=True) for shard in shards}
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
    label, problem, note = column("label"), column("problem"), None
    texts: dict[str, int] = {}  # many shards note the same names of classes
    if any(table.notes for table in tables):
        noted = np.isin(problem, NOTED)
        note = np.where(noted, label, -1).astype(np.int32)
        label[noted] = -1
        for table, rows in zip(tables, np.split(note, np.cumsum(counts)[:-1]), strict=True):  # views
            if table.notes:
                places = np.array([texts.setdefault(text, len(texts)) for text in table.notes], np.int32)
                rows[rows >= 0] = places[rows[rows >= 0]]
    return Index(
        shards=shards,
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        offset=column("offset"),
        size=column("size"),
        label=label,
        width=column("width"),
        height=column("height"),
        orientation=column("orientation"),
        problem=problem,
        key_buffer=b"".join(table.keys for table in tables),
        key_start=key_start,
        without_image=sum(table.without_image for table in tables),
        stamps=tuple((table.shard_size, table.mtime_ns) for table in tables),
        notes=tuple(texts),
        note=note,
        damage=tuple((shard, table.damage) for shard, table in zip(shards, tables, strict=True) if table.damage),
    )


def _ids_of(ids: dict[str, int] | None, names: tuple[str, ...] | None) -> dict[str, int] | None:
    return {name: i for i, name in enumerate(names)} if ids is None and names is not None else ids


def _translate(index: Index, ids: dict[str, int] | None, label_offset: int) -> Index:
    """Return the index with names replaced by `ids`, and `label_offset` subtracted from labels that are numbers."""
    label, problem, note, notes = index.label.copy(), index.problem.copy(), index.note, index.notes
    numbers = label >= 0
    if ids is not None and note is not None:
        rows = np.flatnonzero((problem == LABEL_NOT_INT) & (note >= 0))
        label[rows] = np.array([ids.get(text, -1) for text in notes], dtype=np.int64)[note[rows]]
        problem[rows] = np.where(label[rows] >= 0, FINE, UNKNOWN_CLASS)
    label[numbers] -= label_offset
    if (low := numbers & (label < 0)).any():
        note = np.full(len(index), -1, np.int32) if note is None else note.copy()
        values, which = np.unique(index.label[low], return_inverse=True)
        note[low] = which + len(notes)
        notes += tuple(f"{value}, with label_offset={label_offset}" for value in values.tolist())
        problem[low & (problem == FINE)] = LABEL_RANGE
        label[low] = -1
    return replace(index, label=label, problem=problem, note=note, notes=notes)


def _nothing_found(source: str | PathLike[str] | Sequence[str | PathLike[str]], tables: list[Table]) -> str:
    extensions: Counter[str] = Counter()
    for table in tables:
        extensions.update(table.extensions)
    seen = ", ".join(f"{count} .{extension}" for extension, count in extensions.most_common(8)) or "no members at all"
    wanted = ", ".join("." + extension for extension in IMAGE_EXTENSIONS)
    where = counted(len(tables), "shard")
    advice = ""
    if dotted := next((name for name in extensions if name.rpartition(".")[2] in wanted and "." in name), None):
        advice = f". A key ends at the first dot of a file name, so .{dotted} is no image: write the files without other dots"
    named = source if isinstance(source, (str, PathLike)) else ", ".join(map(str, source))
    return (
        f"{redacted(str(named))}: no sample with an image in {where}; required members {wanted}, found {seen}{advice}"
    )
