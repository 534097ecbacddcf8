"""The members of a tar file in file order, read by their headers alone; nothing is ever unpacked."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from multimix_pipe.errors import ShardError

log = logging.getLogger(__name__)

BLOCK = 512
READ_BUFFER = 16 * 1024  # a header and the first bytes of its file in one read, yet little of a photo's data

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar: `size` bytes of data at byte `offset` of the tar."""

    name: str
    offset: int
    size: int


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
    """Regular files of the tar open at `file`, in file order. The caller may seek `file` between two members.

    Raises ShardError, naming `path`, where this is no plain tar, or where it is cut or damaged.
    """
    size = file.seek(0, 2)
    _check_magic(file, path, size)
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
        for info in tar:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all; a shard may hold a million
            if not info.isreg():
                continue
            if info.issparse():
                raise ShardError(f"{path}: member {info.name!r} is stored sparse; write the shard without --sparse")
            if info.offset_data + info.size > size:
                raise ShardError(
                    f"{path} is cut short: member {info.name!r} needs bytes up to {info.offset_data + info.size:,}, "
                    f"the file has {size:,}; copy or download it again"
                )
            yield Member(info.name, info.offset_data, info.size)
    except (tarfile.TarError, ValueError) as error:
        raise ShardError(f"{path} ({size:,} bytes) is not a whole tar file: {error}; write or copy it again") from error
    _check_end(file, path, tar.offset)


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
        raise ShardError(f"{path} is not a tar file: it has {size} bytes, a tar has at least {BLOCK}")


def _check_end(file: BinaryIO, path: Path, end: int) -> None:
    """tarfile stops in silence at a damaged or cut header; a whole tar ends in a block of zeros."""
    file.seek(end)
    block = file.read(BLOCK)
    if not block:
        log.warning("%s has no end mark: its writer was not closed, or it was cut between two members", path)
    elif block.count(0) != BLOCK:
        raise ShardError(
            f"{path} is damaged or cut at byte {end:,}: required the header of a next member or the end mark, found "
            f"{len(block)} bytes that are neither; copy or download it again"
        )
