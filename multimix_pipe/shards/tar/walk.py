"""The members of a tar file in file order, read by their headers alone; nothing is ever unpacked.

Headers of the usual kind are walked here: one read for a header and the bytes around it, checks of thousands at once in
NumPy. Every other kind (long names, pax records that matter, links, sparse files) is read by Python's tarfile.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import ShardError

Size = TypeVar("Size", int, NDArray[np.int64])

BLOCK = 512
READ_BUFFER = 16 * 1024  # of the file object that tarfile reads the unusual headers from

AHEAD = 3072  # bytes read from each header on: one of pax, the member's own, and the first of its data
_WINDOW = 6144  # a small file, the header of the photo after it, and that photo's first bytes in one read
_WIDE_WINDOW = 2**18  # where members are small, reading all is cheaper than stepping from header to header
_NEAR = 2**14  # bytes to the next header that are read rather than stepped over
_BUFFER = 2**23

_MAX_HEADER = 2**20  # bytes of a member's, with all that extends it
_MAX_NAME = 4096
_MAX_PADDING = 2**20  # of zeros; tar fills 10 KiB by default, and as much as its blocking factor says
MAX_GLOBAL = 4096  # characters in the names of pax records for all members, which tarfile copies for each
_LONG_NUMBER = re.compile(rb"[0-9]{200}")  # tarfile's patterns take quadratic time over longer ones

_KIND, _REGULAR, _PAX = 156, ord("0"), ord("x")
_SIZE, _CHECKSUM, _PREFIX = slice(124, 136), slice(148, 156), slice(345, 500)
_PLACES = 8 ** np.arange(5, -1, -1, dtype=np.uint64)
_TARFILE_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, LookupError)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# records that say nothing about where the data lies or what it is called; webdataset's writer adds an mtime to each file
_HARMLESS = r"mtime|atime|ctime|uid|gid|uname|gname|comment|SCHILY\.[^=\n]*|LIBARCHIVE\.[^=\n]*"
_HARMLESS_KEY = re.compile(_HARMLESS)
_HARMLESS_RECORDS = re.compile(rf"(?:[0-9]+ (?:{_HARMLESS})=[^\n]*\n)+\0*".encode())


class DamagedTarError(ShardError):
    """From some byte on a tar cannot be read: it is cut or damaged. The members before it have been read."""


class Member(NamedTuple):
    """A regular file in a tar: `size` bytes of data at byte `offset` of the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Members:
    """Consecutive regular files of a tar, with the first bytes of each."""

    names: list[bytes]
    offset: NDArray[np.int64]
    """(m,) byte of the tar at which the data starts."""
    size: NDArray[np.int64]
    """(m,) bytes of data."""
    buffer: NDArray[np.uint8]
    """Bytes of the tar; valid until the next Members are read."""
    start: NDArray[np.int64]
    """(m,) where in `buffer` the data starts."""
    have: NDArray[np.int64]
    """(m,) how many bytes of data are there."""


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member as webdataset groups them, or None where the member belongs to no sample.

    The key keeps the folder and ends at the first dot of the base name; the extension is lower-cased. Members that
    start with `__` are metadata, base names that start with a dot are hidden files.

    >>> split_name("train/n01/cat.seg.PNG")
    ('train/n01/cat', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or name.startswith("__"):
        return None
    return folder + slash + stem, extension.lower()


def read_members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """Regular files of the tar open at `file`, in file order.

    Raises ShardError, naming `path`, where this is no plain tar; DamagedTarError where it is cut or damaged.
    """
    for members in read_batches(file, path):
        for name, offset, size in zip(members.names, members.offset.tolist(), members.size.tolist(), strict=True):
            yield Member(name.decode("utf-8", "surrogateescape"), offset, size)


def read_batches(file: BinaryIO, path: Path) -> Iterator[Members]:
    """The same in batches of up to a few thousand."""
    walk = _Walk(file, path)
    while (members := walk.next_batch()) is not None:
        yield members


def read_fully(descriptor: int, into: memoryview, offset: int) -> int:
    """Fill `into` with the bytes of a file from `offset` on; how many there were: fewer only at its end."""
    done = os.preadv(descriptor, [into], offset)
    if done == len(into):
        return done
    while 0 < done < len(into) and (got := os.preadv(descriptor, [into[done:]], offset + done)):
        done += got
    return done


class _Rows:
    """What a walk meets, in file order: a row for each header, in windows that were read at once."""

    def __init__(self) -> None:
        self.start: list[int] = []
        """The buffer's byte behind the header: where a file's data starts."""
        self.size: list[int] = []
        """Bytes of data."""
        self.odd: dict[int, bytes] = {}
        """Names of the rows that tarfile read; their header is not in the buffer."""
        self.windows: list[int] = []
        """Of each window three numbers: rows up to its end, its last byte in the buffer, the way from the buffer to the tar."""

    def columns(self) -> tuple[NDArray[np.int64], ...]:
        """Of each row: start, size, bytes of data in the buffer, the tar's byte at which the data starts."""
        start, size = np.array(self.start, dtype=np.int64), np.array(self.size, dtype=np.int64)
        past, end, to_tar = np.array(self.windows, dtype=np.int64).reshape(-1, 3).T
        counts = np.diff(past, prepend=0)
        return start, size, np.minimum(size, np.repeat(end, counts) - start), start + np.repeat(to_tar, counts)


class _HeaderFile:
    """What tarfile reads headers from: no damaged or hostile one makes it ask for gigabytes, or work for hours."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file
        self.left = _MAX_HEADER
        """Bytes that the header may still have."""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError(f"a header of more than {_MAX_HEADER:,} bytes")
        self.left -= size
        data = self._file.read(size)
        if _LONG_NUMBER.search(data):
            raise ValueError("a header with a number of 200 digits")
        return data


class _Walk:
    """Reads a tar from its first header to its end mark, a buffer full at a time."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._file_size = file.seek(0, 2)
        _check_magic(file, path, self._file_size)
        self._room = min(_BUFFER, _WINDOW + _padded(2 * self._file_size))
        self._memory = bytearray(self._room + AHEAD)
        self._view, self._buffer = memoryview(self._memory), np.frombuffer(self._memory, np.uint8)
        self._next = 0  # the header to go on with
        self._ended = False
        self._cut_off: DamagedTarError | None = None  # the end of the file, within a member
        self._unusual = 0  # headers from there on that tarfile is to read
        self._next_unusual = 1  # how many that will be when the next turns out to need it
        self._headers = _HeaderFile(file)
        try:
            self._tar = tarfile.TarFile(fileobj=self._headers, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        except _TARFILE_ERRORS as error:
            raise self._damage(str(error)) from error
        self._heed_global_records()

    def next_batch(self) -> Members | None:
        """The next files, at least one; None at the end."""
        while not self._ended:
            if self._cut_off is not None:
                raise self._cut_off
            if self._next > self._file_size:
                raise self._damage("the pax records before it are cut")
            members = self._checked(self._collect())
            if members.names:
                return members
        return None

    def _collect(self) -> _Rows:
        rows, filled, span, descriptor, view = _Rows(), 0, _WINDOW, self._file.fileno(), self._view
        while not self._ended and filled + span <= self._room:
            place = self._next
            if place > self._file_size:  # a size is wrong, or the tar is cut: `_checked` finds which
                break
            got = 0
            if not self._unusual:
                got = read_fully(descriptor, view[filled : filled + span], place)
                self._next = self._walk_window(rows, place, filled, filled + got, AHEAD if got == span else BLOCK)
            if self._next == place:
                try:
                    filled += self._read_by_tarfile(rows, filled)
                except ShardError:
                    if not rows.size:
                        raise
                    break  # it comes again, unless one of these rows had a wrong size and led astray
                continue
            filled += _padded(got)
            span = _WINDOW if self._next > place + got + _NEAR else min(4 * span, _WIDE_WINDOW)
        return rows

    def _walk_window(self, rows: _Rows, place: int, begin: int, end: int, margin: int) -> int:
        """Add a row for each header of the usual kind at the buffer's bytes [begin, end) with `margin` bytes from it on.

        These are the tar's bytes from `place` on; the byte of the next header is returned. Sizes are taken as they stand;
        `_checked` finds those of damaged headers.
        """
        memory, starts, sizes, at, last = self._memory, rows.start, rows.size, begin, end - margin
        while at <= last:
            try:
                size = int(memory[at + 124 : at + 135], 8)
            except ValueError:
                break
            kind, data = memory[at + 156], at + BLOCK
            if size < 0 or (kind != _REGULAR and not (kind == _PAX and _is_harmless(memory, data, data + size, end))):
                break
            starts.append(data)
            sizes.append(size)
            at = data + (size + 511 & -512)
        rows.windows += len(starts), end, place - begin
        return place - begin + at

    def _read_by_tarfile(self, rows: _Rows, filled: int) -> int:
        """Read the next header, of whatever kind, and add its row if it is a file's; how much of the buffer that took."""
        self._file.seek(self._next)
        block = self._file.read(BLOCK)
        if not block:
            raise self._damage("the file ends: it was cut between two members, or its writer was not closed")
        if block.count(0) == BLOCK:
            self._check_end(self._file_size - self._next)
            self._ended = True
            return 0
        self._file.seek(self._next)
        self._headers.left = _MAX_HEADER
        try:
            info = tarfile.TarInfo.fromtarfile(self._tar)
        except _TARFILE_ERRORS as error:
            raise self._damage(str(error)) from error
        following: int = self._tar.offset
        if info.size < 0 or following <= self._next:
            raise self._damage(f"{info.name!r} has {info.size} bytes")
        if info.isreg() and info.issparse():
            raise ShardError(f"{self._path}: member {info.name!r} is stored sparse; write the shard without --sparse")
        if len(info.name) > _MAX_NAME:
            raise self._damage(f"a name of {len(info.name):,} characters")
        # the two differ where pax records say another size than the header
        if (needed := max(following, info.offset_data + info.size if info.isreg() else 0)) > self._file_size:
            raise self._cut(info.name, needed)
        self._heed_global_records()
        self._next = following
        self._unusual = max(self._unusual - 1, 0)
        if not info.isreg():
            return 0
        got = read_fully(self._file.fileno(), self._view[filled : filled + AHEAD], info.offset_data)
        rows.odd[len(rows.size)] = info.name.encode("utf-8", "surrogateescape")
        rows.start.append(filled)
        rows.size.append(info.size)
        rows.windows += len(rows.size), filled + got, info.offset_data - filled
        return AHEAD

    def _checked(self, rows: _Rows) -> Members:
        """The files among `rows` up to the first header that is not what the walk took it for; tarfile reads that one next."""
        start, size, have, offset = rows.columns()
        headers = self._buffer.reshape(-1, BLOCK)[start // BLOCK - 1]
        sound = _are_sound(headers)
        sound[list(rows.odd)] = True
        if sound.all():
            count, self._next_unusual = len(sound), 1
        else:
            count = int(np.argmin(sound))
            self._next, self._ended = int(offset[count]) - BLOCK, False
            # twice as many each time: a tar full of them must not be walked again for each
            self._unusual, self._next_unusual = self._next_unusual, min(2 * self._next_unusual, 1024)
        pax = headers[:count, _KIND] == _PAX
        pax[[row for row in rows.odd if row < count]] = False
        files = np.flatnonzero(~pax)
        names = _names(headers[files])
        for position in np.flatnonzero(np.isin(files, list(rows.odd))).tolist():
            names[position] = rows.odd[int(files[position])]
        start, size, have, offset = start[files], size[files], have[files], offset[files]
        padded_end = offset + _padded(size)
        if len(files) and padded_end[-1] > self._file_size:  # only the last can be: the walk ends beyond the file
            self._cut_off = self._cut(names.pop().decode("utf-8", "replace"), int(padded_end[-1]))
            start, size, have, offset = start[:-1], size[:-1], have[:-1], offset[:-1]
        return Members(names, offset, size, self._buffer, start, have)

    def _check_end(self, left: int) -> None:
        """Zeros are the end mark where nothing but padding follows, `left` bytes; else a hole that was never written."""
        if left > _MAX_PADDING or self._file.read(left).strip(b"\0"):
            raise self._damage(f"zeros in the place of a header, with {left:,} bytes from there to the file's end")

    def _heed_global_records(self) -> None:
        """Leave all headers to tarfile where pax records for all following members matter."""
        if sum(map(len, self._tar.pax_headers)) > MAX_GLOBAL:
            raise self._damage(f"pax records for all members with names of more than {MAX_GLOBAL:,} characters")
        if not all(map(_HARMLESS_KEY.fullmatch, self._tar.pax_headers)):
            self._unusual = self._file_size

    def _damage(self, found: str) -> DamagedTarError:
        if not self._next:
            return DamagedTarError(
                f"{self._path} ({self._file_size:,} bytes) is not a whole tar file: {found}; write or copy it again"
            )
        return DamagedTarError(
            f"{self._path} is damaged or cut at byte {self._next:,}: required the header of a next member or the end mark; "
            f"{found}; copy or download it again"
        )

    def _cut(self, name: str, needed: int) -> DamagedTarError:
        return DamagedTarError(
            f"{self._path} is cut short: member {name!r} needs bytes up to {needed:,}, the file has {self._file_size:,}; "
            "copy or download it again"
        )


def _is_harmless(memory: bytearray, begin: int, end: int, known: int) -> bool:
    """Whether the bytes [begin, end), known up to `known`, are pax records that change nothing about a member."""
    return end <= known and _HARMLESS_RECORDS.fullmatch(memory, begin, end) is not None


def _padded(size: Size) -> Size:
    """Bytes of data with what fills its last block."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _are_sound(headers: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Of each (n, BLOCK) header whether its checksum is right and its size is written in plain digits.

    Some sound headers of rare writers are not among them.
    """
    words = headers.view("<u8")
    pairs = np.uint64(0x00FF00FF00FF00FF)  # four sums of 128 bytes in a word; none can pass 16 bits
    sums = (words & pairs).sum(axis=1) + (words >> np.uint64(8) & pairs).sum(axis=1)
    checksum = headers[:, _CHECKSUM]
    total = sums.view("<u2").reshape(-1, 4).sum(axis=1) - checksum.sum(axis=1)
    total += len(checksum.T) * ord(" ")  # the field itself counts as spaces
    digits = checksum - np.uint8(ord("0"))
    is_digit = digits < 8
    found = digits[:, :6] @ _PLACES
    found = np.where(is_digit[:, 6], 8 * found + digits[:, 6], found)  # six digits as most write it, or seven
    size = headers[:, _SIZE]
    sound: NDArray[np.bool_] = is_digit[:, :6].all(axis=1) & ~is_digit[:, 7] & (found == total)
    sound &= (size[:, :-1] - np.uint8(ord("0")) < 8).all(axis=1) & ((size[:, -1] == 0) | (size[:, -1] == ord(" ")))
    return sound


def _names(headers: NDArray[np.uint8]) -> list[bytes]:
    names: list[bytes]
    names = np.ascontiguousarray(headers[:, :100]).view("S100").ravel().tolist()  # less the zeros at their end
    if b"\0" in b"".join(names):
        names = [name.partition(b"\0")[0] for name in names]
    for i in np.flatnonzero(headers[:, _PREFIX.start]).tolist():
        names[i] = headers[i, _PREFIX].tobytes().partition(b"\0")[0] + b"/" + names[i]
    return names


def _check_magic(file: BinaryIO, path: Path, size: int) -> None:
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise ShardError(
                f"{path} is compressed ({kind}); single samples can only be read from a plain tar: unpack it to .tar "
                "first (images hardly shrink, so that little is lost)"
            )
    if size < BLOCK:
        raise DamagedTarError(f"{path} is not a tar file: it has {size} bytes, a tar has at least {BLOCK}")
