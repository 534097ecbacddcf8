"""Header blocks of a tar file: their limits, checks and names."""

from __future__ import annotations

import re
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

Size = TypeVar("Size", int, NDArray[np.int64])

BLOCK = 512
MAX_HEADER = 2**20  # bytes, with all blocks that extend the header
_LONG_NUMBER = re.compile(rb"[0-9]{200}")  # tarfile's patterns take quadratic time on longer numbers

KIND, REGULAR, PAX = 156, ord("0"), ord("x")
_SIZE, _CHECKSUM, _MAGIC, _PREFIX = slice(124, 136), slice(148, 156), slice(257, 265), slice(345, 500)
_GNU = b"ustar  \0"  # such headers have times where others have the prefix of the name
_OWN_NAME = b"\0" + b"01234567S"  # kinds of headers whose name is not in a header before them
_PLACES = 8 ** np.arange(5, -1, -1, dtype=np.uint64)

# pax records that change neither the name of a member nor where its data is; webdataset's writer adds an mtime to each file
_HARMLESS = r"mtime|atime|ctime|uid|gid|uname|gname|comment|SCHILY\.[^=\n]*|LIBARCHIVE\.[^=\n]*"
HARMLESS_KEY = re.compile(_HARMLESS)
_HARMLESS_RECORDS = re.compile(rf"(?:[0-9]+ (?:{_HARMLESS})=[^\n]*\n)+\0*".encode())


class HeaderFile:
    """A file that tarfile reads headers from. Its limits keep damaged and hostile headers from taking gigabytes or hours."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file
        self.left = MAX_HEADER
        """Bytes that may still be read for the current header."""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError(f"a header of more than {MAX_HEADER:,} bytes")
        self.left -= size
        data = self._file.read(size)
        if _LONG_NUMBER.search(data):
            raise ValueError("a header with a number of 200 digits or more")
        return data


def are_harmless(memory: bytearray, begin: int, end: int, known: int) -> bool:
    """Whether bytes [begin, end) of `memory`, valid up to `known`, are pax records that change nothing about a member."""
    return end <= known and _HARMLESS_RECORDS.fullmatch(memory, begin, end) is not None


def padded(size: Size) -> Size:
    """Round up to whole blocks."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def are_valid(headers: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether the checksum of each header (n, BLOCK) is right and its size is written in octal digits, (n,).

    Valid headers of some rare writers do not pass.
    """
    words = headers.view("<u8")
    pairs = np.uint64(0x00FF00FF00FF00FF)  # four 16-bit sums per word, each of 128 bytes
    sums = (words & pairs).sum(axis=1) + (words >> np.uint64(8) & pairs).sum(axis=1)
    checksum = headers[:, _CHECKSUM]
    total = sums.view("<u2").reshape(-1, 4).sum(axis=1) - checksum.sum(axis=1)
    total += len(checksum.T) * ord(" ")  # the checksum field itself counts as spaces
    digits = checksum - np.uint8(ord("0"))
    is_digit = digits < 8
    found = digits[:, :6] @ _PLACES
    found = np.where(is_digit[:, 6], 8 * found + digits[:, 6], found)  # most writers use six digits, some seven
    size = headers[:, _SIZE]
    valid: NDArray[np.bool_] = is_digit[:, :6].all(axis=1) & ~is_digit[:, 7] & (found == total)
    valid &= (size[:, :-1] - np.uint8(ord("0")) < 8).all(axis=1) & ((size[:, -1] == 0) | (size[:, -1] == ord(" ")))
    return valid


def member_names(headers: NDArray[np.uint8]) -> list[bytes]:
    names: list[bytes]
    names = np.ascontiguousarray(headers[:, :100]).view("S100").ravel().tolist()  # this strips the zeros at their end
    if b"\0" in b"".join(names):
        names = [name.partition(b"\0")[0] for name in names]
    for i in np.flatnonzero(headers[:, _PREFIX.start]).tolist():
        if headers[i, _MAGIC].tobytes() == _GNU:
            continue
        names[i] = headers[i, _PREFIX].tobytes().partition(b"\0")[0] + b"/" + names[i]
    return names


def own_name(block: bytes, name: str) -> str:
    """Return the name in the header `block`, for which tarfile found `name`: it takes GNU tar's times for a prefix."""
    if block[_MAGIC] != _GNU or not block[_PREFIX.start] or block[KIND] not in _OWN_NAME:
        return name
    return block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
