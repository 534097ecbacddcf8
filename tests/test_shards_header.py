"""Sizes and orientations are read from headers, however odd these are, without a warning."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.images import plain_image
from multimix_pipe.shards.header import Header, read_headers


def headers_of(images: list[bytes], prefix: int, read: Callable[[int, int, int], bytes]) -> list[Header | None]:
    """Headers of images, the first `prefix` bytes of each at hand."""
    pieces = [data[:prefix] for data in images]
    have = np.array([len(piece) for piece in pieces])
    size = np.array([len(data) for data in images])
    headers = read_headers(np.frombuffer(b"".join(pieces), np.uint8), np.cumsum(have) - have, have, size, read)
    return [None if width < 0 else Header(width, height, turn) for width, height, turn in headers.tolist()]


def header_of(data: bytes, prefix: int = 64) -> Header | None:
    return headers_of([data], prefix, lambda _, begin, end: data[begin:end])[0]


def never(i: int, begin: int, end: int) -> bytes:
    raise AssertionError("more of the image was read")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_width_comes_before_height(kind: str) -> None:
    assert header_of(plain_image((30, 17), kind=kind)) == (30, 17, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"comment": b"c" * 500}])
def test_an_ordinary_jpeg_needs_its_first_bytes_only(options: dict[str, object]) -> None:
    assert headers_of([plain_image((300, 200), **options)], 1200, never) == [(300, 200, 1)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read_and_does_not_turn_the_size(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert header_of(plain_image((30, 17), kind=kind, exif=exif), 4096) == (30, 17, orientation)


def test_big_metadata_segments_are_passed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 60_000
    data = plain_image((30, 17), exif=exif, icc_profile=b"\0" * 300_000)
    assert header_of(data, 8192) == (30, 17, 6)


def test_what_lies_between_is_stepped_over_not_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = plain_image((300, 170), exif=exif, icc_profile=b"\0" * 300_000)
    spans: list[tuple[int, int]] = []

    def read(i: int, begin: int, end: int) -> bytes:
        spans.append((begin, end))
        return data[begin:end]

    assert headers_of([data], 100, read) == [(300, 170, 6)]
    assert sum(min(end, len(data)) - begin for begin, end in spans) < 40_000


def test_many_images_together_are_read_as_each_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    images = [
        b"",
        plain_image((30, 17)),
        plain_image((31, 18), exif=exif, icc_profile=b"\0" * 70_000),
        b"\xff\xd8" + b"\xff" * 9000,
        plain_image((32, 19), kind="PNG"),
        plain_image((33, 20), kind="WEBP"),
        b"no image at all",
        plain_image((34, 21), exif=exif, progressive=True),
        plain_image((35, 22), comment=b"c" * 5000),
        plain_image((36, 23))[:50],
    ] * 3
    alone = [(30, 17, 1), (31, 18, 8), None, (32, 19, 1), (33, 20, 1), None, (34, 21, 8), (35, 22, 1), None]
    for prefix in (0, 3, 64, 1000, 10**6):
        assert headers_of(images, prefix, lambda i, begin, end: images[i][begin:end]) == [None, *alone] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_an_ordinary_png_needs_its_first_bytes_only(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (300, 200)).save(buffer, "PNG")
    assert headers_of([buffer.getvalue()], 900, never) == [(300, 200, 1)]


def _png(width: int, height: int, depth: int = 8, colour: int = 2, filtering: int = 0) -> bytes:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, filtering, 0)
    idat = b"IDAT" + zlib.compress(b"\0" * 10)
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (ihdr, idat)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("values", [{"depth": 5}, {"colour": 1}, {"filtering": 1}, {"width": 0}, {"height": 0}])
def test_a_png_that_pillow_refuses_is_refused(values: dict[str, int]) -> None:
    assert header_of(_png(**{"width": 30, "height": 17})) == (30, 17, 1)
    assert header_of(_png(**{"width": 30, "height": 17, **values})) is None
    damaged = bytearray(_png(30, 17))
    damaged[19] ^= 1  # the width, under the chunk's checksum
    assert header_of(bytes(damaged)) is None


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_counts_as_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert header_of(plain_image((30, 17), exif=exif), 4096) == (30, 17, 1)


def test_no_garbage_in_exif_costs_the_image_or_warns() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = plain_image((30, 17), exif=exif)
    start = data.index(b"Exif\0\0") + 6
    length = int.from_bytes(data[start - 8 : start - 6], "big") - 8
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        at = rng.integers(start, start + length, 3)
        for i in at:
            broken[i] = rng.integers(256)
        header = header_of(bytes(broken), 4096)
        assert header is not None
        assert header[:2] == (30, 17)
        assert 1 <= header.orientation <= 8


def test_no_prefix_of_an_image_crashes_or_gives_another_size() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = plain_image((30, 17), kind=kind)
        for end in range(len(data)):
            header = header_of(data[:end], 40)
            assert header is None or header[:2] == (30, 17)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\0", b"\xff" * 4000, b"GIF89a", b"\0" * 99]
)
def test_what_is_no_image_gives_none(data: bytes) -> None:
    assert header_of(data) is None


def test_an_image_of_a_kind_that_is_not_read_is_known_by_its_first_bytes() -> None:
    ends = []

    def read(i: int, begin: int, end: int) -> bytes:
        ends.append(end)
        return data[begin:end]

    data = plain_image(kind="GIF") + bytes(100_000)
    assert headers_of([data], 16, read) == [None]
    assert max(ends) == 64


def test_a_bomb_is_sized_without_a_warning() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    assert header_of(_png(13_000, 13_000)) == (13_000, 13_000, 1)
    assert header_of(_png(14_000, 14_000)) == (0, 0, 1)  # Pillow refuses; the size is not known
    assert limit == Image.MAX_IMAGE_PIXELS


def test_odd_images_of_other_projects_are_read_as_pillow_reads_them() -> None:
    folder = os.environ.get("MULTIMIX_ODD")
    if not folder:
        pytest.skip("MULTIMIX_ODD names no folder of odd images with an index.tsv")
    with open(Path(folder) / "index.tsv", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    readable = 0
    for row in rows:
        data = (Path(folder) / row["name"]).read_bytes()
        header = header_of(data, 8192)
        if found := re.match(r"OK \S+ \S+ (\d+)x(\d+) \S+ orient=(\S+)", row["pillow"]):
            orientation = int(found[3]) if found[3].isdigit() else None
            assert header is not None, row["name"]
            assert header[:2] == (int(found[1]), int(found[2])), row["name"]
            assert orientation in (header.orientation, None), row["name"]
            readable += 1
        elif header is not None:  # cut or damaged after its header
            assert header.width > 0, row["name"]
            assert header.height > 0, row["name"]
    assert readable > 60


def test_the_fast_path_agrees_with_pillow_on_real_photos() -> None:
    folder = os.environ.get("MULTIMIX_PHOTOS")
    if not folder:
        pytest.skip("MULTIMIX_PHOTOS names no folder of photos")
    paths = sorted(Path(folder).rglob("*.jpg"))[:200]
    assert paths
    for path in paths:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            assert header_of(data, 8192) == (*image.size, image.getexif().get(0x0112, 1)), path.name
