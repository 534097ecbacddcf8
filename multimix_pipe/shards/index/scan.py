"""Scans a shard into a table: where the image of each sample is, its size, its label and its problem, if any."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.files import read_fully
from multimix_pipe.shards.header import MAX_BYTES, MAX_PIXELS, read_headers
from multimix_pipe.shards.tar import READ_BUFFER, DamagedTarError, Members, read_batches, split_name

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

FINE, BAD_HEADER, TOO_MANY_PIXELS, NO_LABEL, LABEL_NOT_INT, LABEL_RANGE, BAD_JSON, TOO_MANY_BYTES = range(8)

PROBLEMS: dict[int, str] = {
    BAD_HEADER: "the image header cannot be read",
    TOO_MANY_PIXELS: f"the image has more than {MAX_PIXELS:,} pixels",
    NO_LABEL: "there is no label",
    LABEL_NOT_INT: "the label is not an integer",
    LABEL_RANGE: "the label is negative or does not fit in 64 bits",
    BAD_JSON: "the .json member is not a JSON object",
    TOO_MANY_BYTES: f"the image has more than {MAX_BYTES:,} bytes",
}
"""What is wrong with a sample, by the code in `Index.problem`; code 0 is a sample without a known problem."""

LABEL_PROBLEMS = (NO_LABEL, LABEL_NOT_INT, LABEL_RANGE, BAD_JSON)

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

_RANKS = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}
_NO_STEM = (b"", b"/")
_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")
_MAX_JSON = 2**24  # bytes; longer texts are cut, so that they do not parse
_MAX_CLS = 64  # bytes; enough for a class id


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


def scan_shard(shard: Path, label: str) -> Table:
    """Read the tar headers, image headers and labels of `shard`; `label` is "cls" or "json:KEY".

    The members of a sample need not be adjacent. If a sample has several images, the first of IMAGE_EXTENSIONS counts. The
    table of a cut or damaged shard has the samples before the damage. Raises ShardError if the shard cannot be read, is not a
    plain tar, changes meanwhile, or has two members with the same key and extension.
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
    return scan.table(shard, stat, damage)


class _Scan:
    """Collects the samples of a shard from batches of members."""

    def __init__(self, descriptor: int, label: str) -> None:
        self._descriptor = descriptor
        self._label_extension = "cls" if label == "cls" else "json"
        self._parse_label = _parse_cls if label == "cls" else partial(_parse_json, key=label.removeprefix("json:"))
        self._label_limit = _MAX_CLS + 1 if label == "cls" else _MAX_JSON
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
        if (code := self._extensions.get(self._label_extension)) is not None:
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
        self._labels.append(np.column_stack([sample[rows], labels]))

    def _data(self, members: Members, row: int, begin: int, end: int) -> bytes:
        """Return bytes [begin, end) of a member, fewer if it ends before."""
        end = min(end, int(members.size[row]))
        if end <= members.have[row]:
            start = int(members.start[row])
            return members.buffer.data[start + begin : start + end].tobytes()
        data = bytearray(end - begin)
        return bytes(data[: read_fully(self._descriptor, memoryview(data), int(members.offset[row]) + begin)])

    def table(self, shard: Path, stat: os.stat_result, damage: str) -> Table:
        """Return the samples that have an image. Raises ShardError if a sample has two members with the same extension."""
        columns = np.concatenate([np.empty((0, 2), np.int64), *self._columns])
        self._check_unique(columns, shard)
        images = np.concatenate([np.empty((0, 7), np.int64), *self._images])
        images = images[np.lexsort((images[:, 1], images[:, 0]))]
        images = images[np.unique(images[:, 0], return_index=True)[1]]
        sample, _, offset, size, width, height, orientation = images.T
        label, problem = self._label_columns()
        label, problem = label[sample], problem[sample]
        problem[(width == 0) | (width * height > MAX_PIXELS)] = TOO_MANY_PIXELS
        problem[width < 0] = BAD_HEADER
        problem[size > MAX_BYTES] = TOO_MANY_BYTES
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
        )

    def _label_columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        label = np.full(len(self._samples), -1, dtype=np.int64)
        problem = np.full(len(self._samples), NO_LABEL, dtype=np.uint8)
        for sample, found, code in (labels.T for labels in self._labels):
            label[sample], problem[sample] = found, code
        return label, problem

    def _check_unique(self, columns: npt.NDArray[np.int64], shard: Path) -> None:
        pairs = columns[:, 0] * len(self._extensions) + columns[:, 1]
        firsts = np.unique(pairs, return_index=True)[1]
        if len(firsts) == len(pairs):
            return
        repeated = np.ones(len(pairs), dtype=np.bool_)
        repeated[firsts] = False
        sample, code = columns[np.argmax(repeated)].tolist()
        key, extension = list(self._samples)[sample].decode("utf-8", "surrogateescape"), list(self._extensions)[code]
        raise ShardError(
            f"{shard} : {key!r} has two members .{extension}; keys must be unique within a shard: write it again"
        )


@lru_cache(maxsize=2**16)
def _parse_cls(text: bytes) -> tuple[int, int]:
    if len(text) > _MAX_CLS or not _INTEGER.fullmatch(text):
        return -1, LABEL_NOT_INT
    return _in_range(int(text))


def _parse_json(text: bytes, key: str) -> tuple[int, int]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return -1, BAD_JSON
    if not isinstance(fields, dict):
        return -1, BAD_JSON
    if key not in fields:
        return -1, NO_LABEL
    value = fields[key]
    if isinstance(value, bool) or not isinstance(value, int):
        return -1, LABEL_NOT_INT
    return _in_range(value)


def _in_range(value: int) -> tuple[int, int]:
    return (value, FINE) if 0 <= value < 2**63 else (-1, LABEL_RANGE)
