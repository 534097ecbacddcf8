"""Scans a shard into a table: where the image of each sample is, its size, its label and its problem, if any."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.files import read_fully
from multimix_pipe.shards.header import MAX_BYTES, MAX_PIXELS, read_headers
from multimix_pipe.shards.index.labels import NO_LABELS, SEVERAL, limit_of, member_of, note_of, parse_folder, parser_of
from multimix_pipe.shards.index.problems import (
    BAD_HEADER,
    DUPLICATE,
    FINE,
    LABEL_NOT_INT,
    MAX_NOTES,
    NO_IMAGE,
    NO_LABEL,
    NOTED,
    TOO_MANY_BYTES,
    TOO_MANY_PIXELS,
    UNREAD_FORMAT,
    Notes,
)
from multimix_pipe.shards.tar import READ_BUFFER, DamagedTarError, Members, read_batches, split_name

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "bmp", "ppm", "pgm")
"""Extensions of images, which are read whatever they hold; of several images of a sample, the first of these counts."""
UNREAD_EXTENSIONS = ("gif", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2")
"""Extensions of images that make a bad sample, if no other image comes with it, rather than none at all."""

ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("size", "<i8"),
        ("label", "<i8"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("key_size", "<u4"),
        ("orientation", "u1"),
        ("problem", "u1"),
    ]
)

_RANKS = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS + UNREAD_EXTENSIONS)}
_NO_STEM = (b"", b"/")
_MAX_NAMED = 5  # members in a note


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of one shard in tar order."""

    rows: npt.NDArray[np.void]
    """(n,) of dtype ROW."""
    keys: bytes | memoryview
    """The keys in UTF-8, concatenated; their lengths are `rows["key_size"]`."""
    shard_size: int
    mtime_ns: int
    without_image: int
    """Number of samples that are left out because they have no image."""
    extensions: dict[str, int]
    """Number of members by extension, for the eight most frequent ones."""
    damage: str = ""
    """Why the shard cannot be read to its end, or ""; `rows` are the samples before the damage."""
    notes: tuple[str, ...] = ()
    """What was found, for rows whose problem is in NOTED: their label is a position in this, or -1."""


def scan_shard(shard: Path, label: str) -> Table:
    """Read the tar headers, image headers and labels of `shard`; `label` is that of `open_index`, or NO_LABELS.

    The members of a sample need not be adjacent. If a sample has several images, the first of IMAGE_EXTENSIONS counts. The
    table of a cut or damaged shard has the samples before the damage. Raises ShardError if the shard cannot be read, is not a
    plain tar, or changes meanwhile.
    """
    damage = ""
    try:
        with open(shard, "rb", buffering=READ_BUFFER) as file:
            stat = os.fstat(file.fileno())
            scan = _Scan(file.fileno(), label)
            try:
                for members in read_batches(file, shard):
                    scan.add(members)
            except DamagedTarError as error:
                damage = str(error)
            after = os.stat(shard)
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error}") from error
    if (after.st_size, after.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        raise ShardError(f"{shard} changed while it was indexed; wait until it is written, then try again")
    return scan.table(stat, damage)


class _Scan:
    """Collects the samples of a shard from batches of members."""

    def __init__(self, descriptor: int, label: str) -> None:
        self._descriptor = descriptor
        self._notes = Notes(math.inf if label.startswith(SEVERAL) else MAX_NOTES)
        self._label, self._label_extension = label, member_of(label)
        self._parse_label, self._label_limit = parser_of(label), limit_of(label)
        self._samples: dict[bytes, int] = {}  # position by key, in order of appearance
        self._codes: dict[bytes, int] = {}  # by extension as written
        self._extensions: dict[str, int] = {}  # by extension in lower case
        self._columns: list[npt.NDArray[np.int64]] = []  # (m, 2) sample, extension code
        self._images: list[npt.NDArray[np.int64]] = []  # (m, 7) sample, extension rank, offset, size, header
        self._labels: list[npt.NDArray[np.int64]] = []  # (m, 3) sample, label, problem

    def add(self, members: Members) -> None:
        """Add the next members."""
        samples, codes = [], []
        known_samples, known_codes = self._samples.get, self._codes.get
        for name in members.names:
            key, _, extension = name.partition(b".")
            sample, code = known_samples(key), known_codes(extension)
            if sample is None or code is None:
                if code is None or key[-1:] in _NO_STEM or key.startswith(b"__"):
                    sample, code = self._register(name)
                else:
                    sample = self._samples[key] = len(self._samples)
            samples.append(sample)
            codes.append(code)
        columns = np.array([samples, codes], dtype=np.int64).T
        self._columns.append(columns[columns[:, 0] >= 0])
        ranks = np.full(len(self._extensions) + 1, -1)  # the last entry is for code -1
        for image_extension, image_rank in _RANKS.items():
            if (code := self._extensions.get(image_extension)) is not None:
                ranks[code] = image_rank
        rank = ranks[columns[:, 1]]
        self._add_images(members, np.flatnonzero(rank >= 0), columns[:, 0], rank)
        if self._label_extension and (code := self._extensions.get(self._label_extension)) is not None:
            self._add_labels(members, np.flatnonzero(columns[:, 1] == code), columns[:, 0])

    def _register(self, name: bytes) -> tuple[int, int]:
        """Return a member's sample and extension code, creating new ones; (-1, -1) if it belongs to no sample."""
        names = split_name(name.decode("utf-8", "surrogateescape"))
        if names is None:
            return -1, -1
        key = names[0].encode("utf-8", "surrogateescape")
        code = self._extensions.setdefault(names[1], len(self._extensions))
        if names[1]:  # for an empty one, `add` could not tell "x." from "x"
            self._codes[names[1].encode("utf-8", "surrogateescape")] = code
        return self._samples.setdefault(key, len(self._samples)), code

    def _add_images(
        self, members: Members, rows: npt.NDArray[np.intp], sample: npt.NDArray[np.int64], rank: npt.NDArray[np.int64]
    ) -> None:
        def read(image: int, begin: int, end: int) -> bytes:
            return self._data(members, int(rows[image]), begin, end)

        start, have, size = members.start[rows], members.have[rows], members.size[rows]
        headers = read_headers(members.buffer, start, have, size, read)
        self._images.append(np.column_stack([sample[rows], rank[rows], members.offset[rows], size, headers]))

    def _add_labels(self, members: Members, rows: npt.NDArray[np.intp], sample: npt.NDArray[np.int64]) -> None:
        size = np.minimum(members.size[rows], self._label_limit)
        view = members.buffer.data
        texts = (  # a generator, as each text may be long
            view[start : start + count].tobytes() if count <= have else self._data(members, row, 0, count)
            for row, start, have, count in zip(
                *(column.tolist() for column in (rows, members.start[rows], members.have[rows], size)), strict=True
            )
        )
        labels = np.array([*map(self._parse_label, texts)], dtype=np.int64).reshape(-1, 2)
        for position in np.flatnonzero(np.isin(labels[:, 1], NOTED)).tolist() if labels[:, 1].any() else ():
            text = self._data(members, int(rows[position]), 0, int(size[position]))
            labels[position, 0] = self._notes(note_of(self._label, text))
        self._labels.append(np.column_stack([sample[rows], labels]))

    def _data(self, members: Members, row: int, begin: int, end: int) -> bytes:
        """Return bytes [begin, end) of a member, fewer if it ends before."""
        end = min(end, int(members.size[row]))
        if end <= members.have[row]:
            start = int(members.start[row])
            return members.buffer.data[start + begin : start + end].tobytes()
        data = bytearray(end - begin)
        return bytes(data[: read_fully(self._descriptor, memoryview(data), int(members.offset[row]) + begin)])

    def table(self, stat: os.stat_result, damage: str) -> Table:
        """Return the samples that have an image, and those that have a label and lack one."""
        columns = np.concatenate([np.empty((0, 2), np.int64), *self._columns])
        images = np.concatenate([np.empty((0, 7), np.int64), *self._images])
        label, problem = self._label_columns()
        lost = self._lost(columns, images[:, 0], problem)
        images = np.concatenate([images, [[sample, 0, 0, 0, 0, 0, 1] for sample in lost]]) if lost else images
        images = images[np.lexsort((images[:, 1], images[:, 0]))]
        images = images[np.unique(images[:, 0], return_index=True)[1]]
        sample, _, offset, size, width, height, orientation = images.T
        repeated = self._repeated(columns)
        label, problem = label[sample], problem[sample]
        noted = np.isin(problem, NOTED) if problem.any() else None
        problem[(width == 0) | (width * height > MAX_PIXELS)] = TOO_MANY_PIXELS
        problem[width == -1] = BAD_HEADER
        problem[width < -1] = UNREAD_FORMAT - 2 - width[width < -1]
        problem[size > MAX_BYTES] = TOO_MANY_BYTES
        if noted is not None:
            label[noted & ~np.isin(problem, NOTED)] = -1
        bare = self._unlabelled(columns, sample[(problem == NO_LABEL) & (label < 0)])
        for found, code in ((bare, NO_LABEL), (lost, NO_IMAGE), (repeated, DUPLICATE)):
            for number in np.flatnonzero(np.isin(sample, list(found))).tolist() if found else ():
                problem[number], label[number] = code, self._notes(found[int(sample[number])])
        all_keys = list(self._samples)
        keys = [all_keys[position] for position in sample.tolist()]
        rows = np.empty(len(keys), dtype=ROW)
        rows["offset"], rows["size"], rows["label"], rows["orientation"] = offset, size, label, orientation
        rows["width"], rows["height"], rows["problem"] = np.maximum(width, 0), np.maximum(height, 0), problem
        rows["key_size"] = [len(key) for key in keys]
        counts = np.bincount(columns[:, 1], minlength=len(self._extensions)).tolist()
        extensions = Counter(dict(zip(self._extensions, counts, strict=True)))
        return Table(
            rows,
            b"".join(keys),
            stat.st_size,
            stat.st_mtime_ns,
            len(self._samples) - len(keys),
            dict(extensions.most_common(8)),
            damage,
            tuple(self._notes.texts),
        )

    def _label_columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        label = np.full(len(self._samples), -1, dtype=np.int64)
        problem = np.full(len(self._samples), FINE if self._label == NO_LABELS else NO_LABEL, dtype=np.uint8)
        if self._label == "folder" and self._samples:
            label[:], problem[:] = np.array([parse_folder(key, self._notes) for key in self._samples], dtype=np.int64).T
        for sample, found, code in (labels.T for labels in self._labels):
            label[sample], problem[sample] = found, code
        return label, problem

    def _lost(
        self, columns: npt.NDArray[np.int64], with_image: npt.NDArray[np.int64], problem: npt.NDArray[np.uint8]
    ) -> dict[int, str]:
        """Return the samples that have a label and no image, or both behind a dot or as links, and the members of each."""
        without = np.ones(len(self._samples), dtype=np.bool_)
        without[with_image] = False
        if not without.any():
            return {}
        names = list(self._extensions)
        kinds = [name.rpartition(".")[2].partition(" ")[0] for name in names]  # of "0.jpg" and "jpg (symbolic link)"
        columns = columns[without[columns[:, 0]]]
        shows, labelled = np.zeros_like(without), np.zeros_like(without)
        shows[columns[np.array([kind in _RANKS for kind in kinds])[columns[:, 1]], 0]] = True
        if self._label_extension is None:
            labelled[:] = True
        else:
            labelled[columns[np.array([kind == self._label_extension for kind in kinds])[columns[:, 1]], 0]] = True
            # a .cls member is a label even if it is invalid; a .json or .txt member may be anything
            valid = LABEL_NOT_INT if self._label.startswith(SEVERAL + "json:") else FINE
            has_label = problem == valid if self._label_extension != "cls" else problem != NO_LABEL
            shows |= has_label
        found = self._members_of(columns, np.flatnonzero(without & shows & labelled))
        return {sample: _members_note(extensions) for sample, extensions in found.items()}

    def _unlabelled(self, columns: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> dict[int, str]:
        """Return the members of `samples`, which have no label, where there is more than the image."""
        if self._label_extension is None or not len(samples):
            return {}
        found = self._members_of(columns, samples)
        return {sample: _members_note(members) for sample, members in found.items() if len(members) > 1}

    def _members_of(self, columns: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> dict[int, list[str]]:
        """Return the extensions of the members of each of `samples`, in file order."""
        names, chosen = list(self._extensions), np.zeros(len(self._samples), dtype=np.bool_)
        chosen[samples] = True
        found: dict[int, list[str]] = {sample: [] for sample in samples.tolist()}
        for sample, code in columns[chosen[columns[:, 0]]].tolist():
            found[sample].append(names[code])
        return found

    def _repeated(self, columns: npt.NDArray[np.int64]) -> dict[int, str]:
        """Return the samples with two images or labels of the same extension, and what is repeated."""
        pairs = columns[:, 0] * len(self._extensions) + columns[:, 1]
        firsts = np.unique(pairs, return_index=True)[1]
        if len(firsts) == len(pairs):
            return {}
        names = list(self._extensions)
        again = np.delete(columns, firsts, axis=0).tolist()
        used = (*_RANKS, self._label_extension)
        return {sample: f"two members .{names[code]}" for sample, code in again if names[code] in used}


def _members_note(extensions: Sequence[str]) -> str:
    listed = ", ".join("." + extension for extension in extensions[:_MAX_NAMED])
    hint = (
        "; a key ends at the first dot of the file name, so write it without other dots"
        if any("." in extension for extension in extensions)
        else ""
    )
    return f"the members {listed}{', ...' if len(extensions) > _MAX_NAMED else ''}{hint}"
