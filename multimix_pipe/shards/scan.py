"""One shard -> one table: where each sample's image lies, how large it is, and what its label says."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.header import MAX_PIXELS, PREFIX, read_header
from multimix_pipe.shards.tar import READ_BUFFER, Member, read_members, split_name

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

FINE, BAD_HEADER, TOO_MANY_PIXELS, NO_LABEL, LABEL_NOT_INT, LABEL_RANGE, BAD_JSON = range(7)

PROBLEMS: dict[int, str] = {
    BAD_HEADER: "the image header cannot be read",
    TOO_MANY_PIXELS: f"the image has more than {MAX_PIXELS:,} pixels",
    NO_LABEL: "there is no label",
    LABEL_NOT_INT: "the label is not an integer",
    LABEL_RANGE: "the label is negative or does not fit 64 bits",
    BAD_JSON: "the .json member is not a JSON object",
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

_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")
_MAX_CLS = 64  # bytes; a class id needs no more, and a file of another kind is not read


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of one shard in tar order."""

    rows: npt.NDArray[np.void]
    """(n,) of dtype ROW."""
    keys: bytes
    """The keys in UTF-8 one after the other; `rows["key_size"]` cuts them."""
    shard_size: int
    mtime_ns: int
    without_image: int
    """Samples left out because none of their members is an image."""
    extensions: dict[str, int]
    """How many members have which extension, the most frequent eight."""


class _Sample:
    __slots__ = ("extensions", "image", "image_rank", "label", "problem")

    def __init__(self) -> None:
        self.extensions: list[str] = []
        self.image: tuple[int, int, int, int, int] | None = None  # offset, size, width, height, orientation
        self.image_rank = len(IMAGE_EXTENSIONS)
        self.label = -1
        self.problem = NO_LABEL


def scan_shard(shard: Path, label: str) -> Table:
    """Read the headers of `shard`, the first bytes of its images and its labels; `label` is "cls" or "json:KEY".

    Members of one sample need not be neighbours. Of several images in a sample the first of IMAGE_EXTENSIONS counts.
    """
    samples: dict[str, _Sample] = {}
    try:
        with open(shard, "rb", buffering=READ_BUFFER) as file:
            stat = os.fstat(file.fileno())
            for member in read_members(file, shard):
                names = split_name(member.name)
                if names is not None:
                    _add(samples.setdefault(names[0], _Sample()), names, member, file, label, shard)
            after = os.stat(shard)
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error}") from error
    if (after.st_size, after.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        raise ShardError(f"{shard} changed while it was indexed; wait until it is written, then try again")
    return _table(samples, stat)


def _add(sample: _Sample, names: tuple[str, str], member: Member, file: BinaryIO, label: str, shard: Path) -> None:
    key, extension = names
    if extension in sample.extensions:
        raise ShardError(
            f"{shard} : {key} has two members .{extension}; required that keys are unique in a shard: write it again"
        )
    sample.extensions.append(extension)
    if extension in IMAGE_EXTENSIONS:
        rank = IMAGE_EXTENSIONS.index(extension)
        if rank < sample.image_rank:
            sample.image, sample.image_rank = _image(member, file), rank
    elif extension == "cls" and label == "cls":
        sample.label, sample.problem = _parse_cls(_read(file, member, _MAX_CLS + 1))
    elif extension == "json" and label != "cls":
        sample.label, sample.problem = _parse_json(_read(file, member, member.size), label.removeprefix("json:"))


def _read(file: BinaryIO, member: Member, limit: int) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, limit))


def _image(member: Member, file: BinaryIO) -> tuple[int, int, int, int, int]:
    header = read_header(_read(file, member, PREFIX), lambda: _read(file, member, member.size))
    width, height, orientation = header or (-1, -1, 1)
    return member.offset, member.size, width, height, orientation


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


def _table(samples: dict[str, _Sample], stat: os.stat_result) -> Table:
    with_image = {key: sample for key, sample in samples.items() if sample.image is not None}
    keys = [key.encode("utf-8", "surrogateescape") for key in with_image]
    rows = np.zeros(len(keys), dtype=ROW)
    for i, sample in enumerate(with_image.values()):
        assert sample.image is not None
        offset, size, width, height, orientation = sample.image
        problem = sample.problem
        if width < 0:
            problem = BAD_HEADER
        elif width == 0 or width * height > MAX_PIXELS:
            problem = TOO_MANY_PIXELS
        rows[i] = (offset, size, sample.label, max(width, 0), max(height, 0), len(keys[i]), orientation, problem)
    extensions = Counter(extension for sample in samples.values() for extension in sample.extensions)
    return Table(
        rows, b"".join(keys), stat.st_size, stat.st_mtime_ns, len(samples) - len(keys), dict(extensions.most_common(8))
    )
