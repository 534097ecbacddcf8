"""What a tar contains: its members, the split of their names into key and extension, and reading its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import ShardError


class DamagedTarError(ShardError):
    """A tar is cut or damaged at some byte. The members before that byte have been read."""


class Member(NamedTuple):
    """A regular file in a tar: `size` bytes of data at byte `offset` of the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Members:
    """m consecutive regular files of a tar, with the first bytes of each."""

    names: list[bytes]
    offset: NDArray[np.int64]
    """(m,) first byte of the data in the tar."""
    size: NDArray[np.int64]
    """(m,) bytes of data."""
    buffer: NDArray[np.uint8]
    """Bytes of the tar; valid until the next Members are read."""
    start: NDArray[np.int64]
    """(m,) first byte of the data in `buffer`."""
    have: NDArray[np.int64]
    """(m,) bytes of the data that are in `buffer`."""


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into (key, extension) as webdataset does; None if the member belongs to no sample.

    The key includes the folder and ends at the first dot of the base name; the extension is lower-cased. Names that
    start with `__` (metadata) and base names that start with a dot (hidden files) belong to no sample.

    >>> split_name("train/n01/cat.seg.PNG")
    ('train/n01/cat', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or name.startswith("__"):
        return None
    return folder + slash + stem, extension.lower()
