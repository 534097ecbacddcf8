"""Small images and tars for the tests of shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def encode(size: tuple[int, int] = (12, 8), *, colour: int = 100, kind: str = "JPEG", **options: object) -> bytes:
    """An image of one colour, `size` as (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, colour // 2, 255 - colour)).save(buffer, kind, **options)
    return buffer.getvalue()


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
        members += [(f"{i:04d}.jpg", encode((10 + i, 8), colour=i % 256)), (f"{i:04d}.cls", str(i).encode())]
    return members
