"""Lists the members of a tar file by reading only its headers; nothing is unpacked.

Common headers are read here, many in one read, and thousands are checked at once in NumPy. Python's tarfile reads the rest:
long names, pax records that matter, links, sparse files. A hard link has the data of the member that it names. A symbolic link
and a sparse file have none that could be read; their names end in what they are, so that they are neither image nor label.
"""

from __future__ import annotations

import tarfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.files import read_fully
from multimix_pipe.shards.tar.headers import (
    BLOCK,
    HARMLESS_KEY,
    KIND,
    MAX_HEADER,
    PAX,
    REGULAR,
    HeaderFile,
    are_harmless,
    are_valid,
    member_names,
    own_name,
    padded,
)
from multimix_pipe.shards.tar.members import DamagedTarError, Member, Members

READ_BUFFER = 16 * 1024  # bytes buffered by the file object that tarfile reads from

_AHEAD = 3072  # bytes read from the start of each header: a pax header, the member's own header, and its first data
_WINDOW = 6144  # one read covers a small file, the header of the photo behind it, and the photo's first bytes
_WIDE_WINDOW = 2**18  # for small members, reading everything is cheaper than seeking from header to header
_NEAR = 2**14  # if the next header is at most this far, the bytes up to it are read instead of skipped
_BUFFER = 2**23
_WIDEST_WINDOW = 2**22  # where storage is slow, reading everything is cheaper than waiting once for each header
_BYTES_PER_SECOND = 2e8  # of slow storage; a header is skipped to if the bytes up to it take longer than a read waits

_MAX_NAME = 4096
_CHUNK = 2**20  # bytes read at once behind the end mark
_MAX_ZEROS = 2**28  # bytes that are read to see whether the end of a damaged file is all zeros
_LONG_PADDING = 2**20  # bytes at the end; tar's default is 10 KiB, a blocking factor gives more, and whole records
_MAX_GLOBAL = 4096  # characters in the names of global pax records, which tarfile copies to each member

TARFILE_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, LookupError)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_OTHERS = {b"PK\3\4": "a zip", b"\xff\xd8\xff": "a JPEG", b"\x89PNG": "a PNG"}


def read_members(file: BinaryIO, path: Path) -> Iterator[Member]:
    """Yield the regular files of the tar that is open as `file`, in file order.

    Raises ShardError if it is not a plain tar, and DamagedTarError if it is cut or damaged; both name `path`.
    """
    for members in read_batches(file, path):
        for name, offset, size in zip(members.names, members.offset.tolist(), members.size.tolist(), strict=True):
            yield Member(name.decode("utf-8", "surrogateescape"), offset, size)


def read_batches(file: BinaryIO, path: Path) -> Iterator[Members]:
    """Like `read_members`, in batches of up to a few thousand."""
    walk = _Walk(file, path)
    while (members := walk.next_batch()) is not None:
        yield members


class _Rows:
    """The headers in the buffer, one row per header in file order. A window is a span of the tar that one read fetched."""

    def __init__(self) -> None:
        self.start: list[int] = []
        """Byte of the buffer after the header, where a file's data starts."""
        self.size: list[int] = []
        """Bytes of data."""
        self.odd: dict[int, bytes] = {}
        """Names of the rows that tarfile read; their headers are not in the buffer."""
        self.windows: list[int] = []
        """Three numbers per window: rows up to its end, its end in the buffer, its offset from the buffer to the tar."""

    def columns(self) -> tuple[NDArray[np.int64], ...]:
        """Return start, size, bytes of data in the buffer, and first byte of the data in the tar, each (rows,)."""
        start, size = np.array(self.start, dtype=np.int64), np.array(self.size, dtype=np.int64)
        stop, end, to_tar = np.array(self.windows, dtype=np.int64).reshape(-1, 3).T
        counts = np.diff(stop, prepend=0)
        return start, size, np.minimum(size, np.repeat(end, counts) - start), start + np.repeat(to_tar, counts)


class _Walk:
    """Reads a tar from its first header to its end mark, one buffer at a time."""

    def __init__(self, file: BinaryIO, path: Path, follow_links: bool = True) -> None:
        self._file, self._path = file, path
        self._targets: dict[bytes, tuple[int, int]] | None = None if follow_links else {}  # offset and size by name
        self._file_size = file.seek(0, 2)
        _check_magic(file, path, self._file_size)
        self._room = min(_BUFFER, _WINDOW + padded(2 * self._file_size))
        self._memory = bytearray(self._room + _AHEAD)
        self._view, self._buffer = memoryview(self._memory), np.frombuffer(self._memory, np.uint8)
        self._next = 0  # byte of the next header
        self._ended = False
        self._waits: deque[float] = deque(maxlen=4)  # seconds that the last reads waited
        self._cut_off: DamagedTarError | None = None  # set if the file ends within a member
        self._unusual = 0  # number of next headers that tarfile reads
        self._next_unusual = 1  # that number after the next invalid header
        self._headers = HeaderFile(file)
        try:
            self._tar = tarfile.TarFile(fileobj=self._headers, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        except TARFILE_ERRORS as error:
            raise self._damage(str(error)) from error
        self._check_global_records()

    def next_batch(self) -> Members | None:
        """Return the next files, at least one, or None at the end."""
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
            if place > self._file_size:  # a size is wrong or the tar is cut; `_checked` finds out which
                break
            got = 0
            if not self._unusual:
                began = time.perf_counter()
                got = read_fully(descriptor, view[filled : filled + span], place)
                self._waits.append(time.perf_counter() - began - got / _BYTES_PER_SECOND)
                self._next = self._walk_window(rows, place, filled, filled + got, _AHEAD if got == span else BLOCK)
            if self._next == place:
                try:
                    filled += self._read_with_tarfile(rows, filled)
                except ShardError:
                    if not rows.size:
                        raise
                    break  # it is raised again, unless a wrong size in these rows led here
                continue
            filled += padded(got)
            span = self._next_span(span, skipped=self._next - place - got)
        return rows

    def _next_span(self, span: int, skipped: int) -> int:
        """Return how many bytes to read at the next header, which is `skipped` bytes after those that were read."""
        if skipped <= _NEAR:
            return min(4 * span, _WIDE_WINDOW) if span <= _WIDE_WINDOW else span
        if skipped / _BYTES_PER_SECOND < min(
            self._waits
        ):  # the least of some, as a busy machine makes any read look slow
            return min(4 * span, _WIDEST_WINDOW)
        return _WINDOW

    def _walk_window(self, rows: _Rows, place: int, begin: int, end: int, margin: int) -> int:
        """Add a row for each common header in bytes [begin, end) of the buffer, if `margin` bytes follow its start.

        Byte `begin` of the buffer is byte `place` of the tar. Returns the byte of the next header in the tar. Damaged headers
        may have wrong sizes here; `_checked` finds them.
        """
        memory, starts, sizes, at, last = self._memory, rows.start, rows.size, begin, end - margin
        while at <= last:
            try:
                size = int(memory[at + 124 : at + 135], 8)
            except ValueError:
                break
            kind, data = memory[at + 156], at + BLOCK
            if size < 0 or (kind != REGULAR and not (kind == PAX and are_harmless(memory, data, data + size, end))):
                break
            starts.append(data)
            sizes.append(size)
            at = data + (size + 511 & -512)
        rows.windows += len(starts), end, place - begin
        return place - begin + at

    def _read_with_tarfile(self, rows: _Rows, filled: int) -> int:
        """Read the next header of any kind, and add a row if it is a regular file; return the bytes of the buffer used."""
        self._file.seek(self._next)
        block = self._file.read(BLOCK)
        if not block:
            raise self._damage("the file ends: it was cut between two members, or its writer was not closed")
        if block.count(0) == BLOCK:
            self._check_end()
            self._ended = True
            return 0
        self._file.seek(self._next)
        self._headers.left = MAX_HEADER
        try:
            info = tarfile.TarInfo.fromtarfile(self._tar)
        except TARFILE_ERRORS as error:
            raise self._damage(str(error)) from error
        following: int = self._tar.offset
        if info.size < 0 or following <= self._next:
            raise self._damage(f"{info.name!r} has {info.size} bytes")
        info.name = own_name(block, info.name)
        if len(info.name) > _MAX_NAME:
            raise self._damage(f"a name of {len(info.name):,} characters")
        # they differ if pax records and header give different sizes; that of a sparse file counts its holes
        whole = info.isreg() and not info.issparse()
        if (needed := max(following, info.offset_data + info.size if whole else 0)) > self._file_size:
            raise self._cut(info.name, needed)
        self._check_global_records()
        self._next = following
        self._unusual = max(self._unusual - 1, 0)
        if not self._resolve(info):
            return 0
        got = read_fully(self._file.fileno(), self._view[filled : filled + _AHEAD], info.offset_data)
        rows.odd[len(rows.size)] = info.name.encode("utf-8", "surrogateescape")
        rows.start.append(filled)
        rows.size.append(info.size)
        rows.windows += len(rows.size), filled + got, info.offset_data - filled
        return _AHEAD

    def _checked(self, rows: _Rows) -> Members:
        """Return the files in `rows` before the first invalid header, which tarfile reads next."""
        start, size, have, offset = rows.columns()
        headers = self._buffer.reshape(-1, BLOCK)[start // BLOCK - 1]
        valid = are_valid(headers)
        valid[list(rows.odd)] = True
        if valid.all():
            count, self._next_unusual = len(valid), 1
        else:
            count = int(np.argmin(valid))
            self._next, self._ended = int(offset[count]) - BLOCK, False
            # doubled each time: in a tar full of such headers, each would cost a buffer
            self._unusual, self._next_unusual = self._next_unusual, min(2 * self._next_unusual, 1024)
        pax = headers[:count, KIND] == PAX
        pax[[row for row in rows.odd if row < count]] = False
        files = np.flatnonzero(~pax)
        names = member_names(headers[files])
        for position in np.flatnonzero(np.isin(files, list(rows.odd))).tolist():
            names[position] = rows.odd[int(files[position])]
        start, size, have, offset = start[files], size[files], have[files], offset[files]
        padded_end = offset + padded(size)
        if len(files) and padded_end[-1] > self._file_size:  # only the last file can be cut: the walk stops there
            self._cut_off = self._cut(names.pop().decode("utf-8", "replace"), int(padded_end[-1]))
            start, size, have, offset = start[:-1], size[:-1], have[:-1], offset[:-1]
        return Members(names, offset, size, self._buffer, start, have)

    def _resolve(self, info: tarfile.TarInfo) -> bool:
        """Set the data of a link or a sparse file. Returns whether it is listed."""
        if info.islnk():
            if self._targets is None:
                self._targets = self._find_targets()
            if (target := self._targets.get(info.linkname.encode("utf-8", "surrogateescape"))) is not None:
                info.offset_data, info.size = target
                return True
        kind = "symbolic link" if info.issym() else "hard link to nothing" if info.islnk() else "sparse"
        if info.issym() or info.islnk() or (info.isreg() and info.issparse()):
            info.name, info.size = f"{info.name} ({kind})", 0
            return True
        return info.isreg()

    def _find_targets(self) -> dict[bytes, tuple[int, int]]:
        walk = _Walk(self._file, self._path, follow_links=False)
        targets: dict[bytes, tuple[int, int]] = {}
        with suppress(DamagedTarError):  # this walk will come to the damage too
            while (members := walk.next_batch()) is not None:
                places = zip(members.offset.tolist(), members.size.tolist(), strict=True)
                targets.update(zip(members.names, places, strict=True))
        return targets

    def _check_end(self) -> None:
        """Raise DamagedTarError if another header follows the end mark, or only half of the mark and something else.

        Anything else that follows is ignored, as GNU tar does: a mark is two blocks of zeros.
        """
        first, zeros, damaged, left = True, True, False, self._file_size - self._next
        # what is padded beyond the usual ends with a whole record, a large power of two; a file that was allocated need not
        long = left > _LONG_PADDING and self._file_size % (1 << (left - 1).bit_length()) != 0
        if long and left > _MAX_ZEROS:
            left, zeros = 0, False
        self._file.seek(self._next)
        while left > 0 and not damaged and (data := self._file.read(min(_CHUNK, left))):
            left -= len(data)
            if data.count(0) < len(data):
                zeros = False
                blocks = np.frombuffer(data[: len(data) // BLOCK * BLOCK], np.uint8).reshape(-1, BLOCK)
                used = np.flatnonzero(blocks.any(axis=1))
                damaged = (first and len(used) > 0 and used[0] < 2) or bool(are_valid(blocks[used]).any())
            first = False
        if damaged or long:
            left = self._file_size - self._next
            advice = (
                f", or, if none of its members is missing, cut the zeros off: truncate -s {self._next + 2 * BLOCK} FILE"
            )
            found = f"zeros instead of a header, {left:,} bytes before the end of the file"
            raise self._damage(found, advice if zeros else "")

    def _check_global_records(self) -> None:
        """Let tarfile read all further headers if global pax records matter."""
        if sum(map(len, self._tar.pax_headers)) > _MAX_GLOBAL:
            raise self._damage(f"global pax records with names of more than {_MAX_GLOBAL:,} characters")
        if not all(map(HARMLESS_KEY.fullmatch, self._tar.pax_headers)):
            self._unusual = self._file_size

    def _damage(self, found: str, advice: str = "") -> DamagedTarError:
        if not self._next:
            return DamagedTarError(
                f"{self._path} ({self._file_size:,} bytes) is not a whole tar file: {found}; write or copy it again"
            )
        return DamagedTarError(
            f"{self._path} is damaged or cut at byte {self._next:,}: required another header or the end mark; "
            f"{found}; copy or download it again{advice}"
        )

    def _cut(self, name: str, needed: int) -> DamagedTarError:
        return DamagedTarError(
            f"{self._path} is cut short: member {name!r} ends at byte {needed:,}, the file has {self._file_size:,} bytes; "
            "copy or download it again"
        )


def _check_magic(file: BinaryIO, path: Path, size: int) -> None:
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise ShardError(
                f"{path} is compressed ({kind}); single samples can only be read from a plain tar: decompress it to .tar "
                "first (compression hardly shrinks images)"
            )
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            raise ShardError(
                f"{path} is {kind}, not a tar: make shards with multimix-pipe pack SRC OUT, where SRC is a zip or folder of "
                "images class/name.jpg, and open OUT"
            )
    if size < BLOCK:
        raise DamagedTarError(f"{path} is not a tar file: it has {size} bytes, required at least {BLOCK}")
