"""One shard -> one table: where each sample's image lies, how large it is, and what its label says."""

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
from multimix_pipe.shards.header import MAX_BYTES, MAX_PIXELS, read_headers
from multimix_pipe.shards.tar import READ_BUFFER, DamagedTarError, Members, read_batches, read_fully, split_name

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

FINE, BAD_HEADER, TOO_MANY_PIXELS, NO_LABEL, LABEL_NOT_INT, LABEL_RANGE, BAD_JSON, TOO_MANY_BYTES = range(8)

PROBLEMS: dict[int, str] = {
    BAD_HEADER: "the image header cannot be read",
    TOO_MANY_PIXELS: f"the image has more than {MAX_PIXELS:,} pixels",
    NO_LABEL: "there is no label",
    LABEL_NOT_INT: "the label is not an integer",
    LABEL_RANGE: "the label is negative or does not fit 64 bits",
    BAD_JSON: "the .json member is not a JSON object",
    TOO_MANY_BYTES: f"the image has more than {MAX_BYTES:,} bytes",
}
"""What is wrong with a sample, by the code in `Index.problem`; 0 is a sample without a known problem."""

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
_MAX_JSON = 2**24  # bytes; what is longer is cut, so that it does not parse
_MAX_CLS = 64  # bytes; a class id needs no more, and a file of another kind is not read


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of one shard in tar order."""

    rows: npt.NDArray[np.void]
    """(n,) of dtype ROW."""
    keys: bytes | memoryview
    """The keys in UTF-8 one after the other; `rows["key_size"]` cuts them."""
    shard_size: int
    mtime_ns: int
    without_image: int
    """Samples left out because none of their members is an image."""
    extensions: dict[str, int]
    """How many members have which extension, the most frequent eight."""
    damage: str = ""
    """What is wrong with a shard that cannot be read to its end; the rows are the samples before that."""


def scan_shard(shard: Path, label: str) -> Table:
    """Read the headers of `shard`, the first bytes of its images and its labels; `label` is "cls" or "json:KEY".

    Members of one sample need not be neighbours. Of several images in a sample the first of IMAGE_EXTENSIONS counts.
    Of a shard that is cut or damaged the table holds what comes before that.
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
    """What is known of a shard's samples so far; members of a batch are looked at together."""

    def __init__(self, descriptor: int, label: str) -> None:
        self._descriptor = descriptor
        self._label_extension = "cls" if label == "cls" else "json"
        self._parse_label = _parse_cls if label == "cls" else partial(_parse_json, key=label.removeprefix("json:"))
        self._label_limit = _MAX_CLS + 1 if label == "cls" else _MAX_JSON
        self._samples: dict[bytes, int] = {}  # numbers by key, in the order in which they come
        self._codes: dict[bytes, int] = {}  # of extensions as they are written
        self._extensions: dict[str, int] = {}  # the same codes, by extension in lower case
        self._columns: list[npt.NDArray[np.int64]] = []  # (m, 2) sample and extension code of members
        self._images: list[npt.NDArray[np.int64]] = []  # (m, 7) sample, rank of its extension, offset, size, header
        self._labels: list[npt.NDArray[np.int64]] = []  # (m, 3) sample, label, problem

    def add(self, members: Members) -> None:
        """Take note of the next members."""
        numbers, codes = [], []
        known_samples, known_codes = self._samples.get, self._codes.get
        for name in members.names:
            key, _, extension = name.partition(b".")
            number, code = known_samples(key), known_codes(extension)
            if number is None or code is None:
                if code is None or key[-1:] in _NO_STEM or key.startswith(b"__"):
                    number, code = self._place(name)
                else:
                    number = self._samples[key] = len(self._samples)
            numbers.append(number)
            codes.append(code)
        columns = np.array([numbers, codes], dtype=np.int64).T
        self._columns.append(columns[columns[:, 0] >= 0])
        ranks = np.full(len(self._extensions) + 1, -1)  # the last is for code -1, members of no sample
        for image_extension, place in _RANKS.items():
            if (code := self._extensions.get(image_extension)) is not None:
                ranks[code] = place
        rank = ranks[columns[:, 1]]
        self._add_images(members, np.flatnonzero(rank >= 0), columns[:, 0], rank)
        if (code := self._extensions.get(self._label_extension)) is not None:
            self._add_labels(members, np.flatnonzero(columns[:, 1] == code), columns[:, 0])

    def _place(self, name: bytes) -> tuple[int, int]:
        """Numbers of a member's sample and extension, made where they are new; -1 where it belongs to no sample."""
        names = split_name(name.decode("utf-8", "surrogateescape"))
        if names is None:
            return -1, -1
        key = names[0].encode("utf-8", "surrogateescape")
        code = self._extensions.setdefault(names[1], len(self._extensions))
        if names[1]:  # without, `add` could not tell "x." from "x"
            self._codes[names[1].encode("utf-8", "surrogateescape")] = code
        return self._samples.setdefault(key, len(self._samples)), code

    def _add_images(
        self, members: Members, rows: npt.NDArray[np.intp], sample: npt.NDArray[np.int64], rank: npt.NDArray[np.int64]
    ) -> None:
        def read(i: int, begin: int, end: int) -> bytes:
            return self._data(members, int(rows[i]), begin, end)

        start, have, size = members.start[rows], members.have[rows], members.size[rows]
        headers = read_headers(members.buffer, start, have, size, read)
        self._images.append(np.column_stack([sample[rows], rank[rows], members.offset[rows], size, headers]))

    def _add_labels(self, members: Members, rows: npt.NDArray[np.intp], sample: npt.NDArray[np.int64]) -> None:
        size = np.minimum(members.size[rows], self._label_limit)
        view = members.buffer.data
        texts = (  # one at a time: each may be long
            view[start : start + count].tobytes() if count <= have else self._data(members, i, 0, count)
            for i, start, have, count in zip(
                *(column.tolist() for column in (rows, members.start[rows], members.have[rows], size)), strict=True
            )
        )
        labels = np.array([*map(self._parse_label, texts)], dtype=np.int64).reshape(-1, 2)
        self._labels.append(np.column_stack([sample[rows], labels]))

    def _data(self, members: Members, i: int, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a member, those of them that it has."""
        end = min(end, int(members.size[i]))
        if end <= members.have[i]:
            start = int(members.start[i])
            return members.buffer.data[start + begin : start + end].tobytes()
        data = bytearray(end - begin)
        return bytes(data[: read_fully(self._descriptor, memoryview(data), int(members.offset[i]) + begin)])

    def table(self, shard: Path, stat: os.stat_result, damage: str) -> Table:
        """All samples that have an image. Raises ShardError where a sample has two members of one extension."""
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
        keys = [all_keys[number] for number in sample.tolist()]
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
        for number, found, code in (labels.T for labels in self._labels):
            label[number], problem[number] = found, code
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
            f"{shard} : {key!r} has two members .{extension}; required that keys are unique in a shard: write it again"
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
