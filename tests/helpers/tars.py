"""Small tars and index files: valid ones, and ones that no writer makes."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from helpers.images import plain_image
from multimix_pipe.shards import Index, open_index

BLOCK = 512
"""Bytes of a tar's block."""


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar with `members`, (name, data), by means of Python's tarfile. Returns `path`."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def plain_members(count: int, *, start: int = 0) -> list[tuple[str, bytes]]:
    """Return the members of `count` samples, a jpg and a cls each; sample i has the size (10 + i, 8) and the label i."""
    members = []
    for i in range(start, start + count):
        members += [(f"{i:04d}.jpg", plain_image((10 + i, 8), colour=i % 256)), (f"{i:04d}.cls", str(i).encode())]
    return members


def octal(total: int) -> bytes:
    """Return a checksum in the form that most writers use."""
    return b"%06o\0 " % total


def sealed(block: bytes, checksum: Callable[[int], bytes] = octal) -> bytes:
    """Return a header block with its checksum, in the form that `checksum` gives it."""
    header = bytearray(block.ljust(BLOCK, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = checksum(sum(header))
    return bytes(header)


def header(
    name: bytes = b"a.jpg",
    size: bytes | int = 5,
    kind: bytes = b"0",
    link: bytes = b"",
    *,
    checksum: Callable[[int], bytes] = octal,
) -> bytes:
    """Return a header block with the given fields."""
    size = b"%011o\0" % size if isinstance(size, int) else size
    fields = (name, b"0000644\0", b"0000000\0", b"0000000\0", size, b"00000000000\0", b"", kind, link, b"ustar\x0000")
    return sealed(struct.pack("100s8s8s8s12s12s8ss100s8s247x", *fields), checksum)


def resealed(index: bytes) -> bytes:
    """Return an index file with a correct checksum, as if it had been written so rather than damaged."""
    return b"%08x\n" % zlib.crc32(index[9:]) + index[9:]


def index_of(source: object, **options: object) -> Index:
    """Return the index of the shards in `source`, opened quietly."""
    return open_index(source, progress=False, **options)  # type: ignore[arg-type]
