"""Small tars and index files, sound ones and such as no writer makes."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from helpers.images import plain_image

BLOCK = 512
"""Bytes; what a tar is made of."""


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.GNU_FORMAT) -> Path:
    """A tar by Python's tarfile with `members` as (name, data)."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def plain_members(count: int, *, start: int = 0) -> list[tuple[str, bytes]]:
    """`count` samples of a jpg and a cls; sample i has the size (10 + i, 8) and the label i."""
    members = []
    for i in range(start, start + count):
        members += [(f"{i:04d}.jpg", plain_image((10 + i, 8), colour=i % 256)), (f"{i:04d}.cls", str(i).encode())]
    return members


def octal(total: int) -> bytes:
    """A checksum as most writers have it."""
    return b"%06o\0 " % total


def sealed(block: bytes, checksum: Callable[[int], bytes] = octal) -> bytes:
    """A header block with the checksum that it should have, or another."""
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
    """A tar's header block with fields as given."""
    size = b"%011o\0" % size if isinstance(size, int) else size
    fields = (name, b"0000644\0", b"0000000\0", b"0000000\0", size, b"00000000000\0", b"", kind, link, b"ustar\x0000")
    return sealed(struct.pack("100s8s8s8s12s12s8ss100s8s247x", *fields), checksum)


def resealed(index: bytes) -> bytes:
    """An index file with a checksum that fits, as a file has that was not damaged but made so."""
    return b"%08x\n" % zlib.crc32(index[9:]) + index[9:]
