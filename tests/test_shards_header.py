"""Sizes and orientations are read from headers, however odd these are, without a warning."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import encode

from multimix_pipe.shards.header import Header, read_header


def header_of(data: bytes, prefix: int = 64) -> Header | None:
    return read_header(data[:prefix], lambda: data)


def never() -> bytes:
    raise AssertionError("the whole image was read")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_width_comes_before_height(kind: str) -> None:
    assert header_of(encode((30, 17), kind=kind)) == (30, 17, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"comment": b"c" * 500}])
def test_an_ordinary_jpeg_needs_its_first_bytes_only(options: dict[str, object]) -> None:
    assert read_header(encode((300, 200), **options)[:1200], never) == (300, 200, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_read_and_does_not_turn_the_size(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert header_of(encode((30, 17), kind=kind, exif=exif), 4096) == (30, 17, orientation)


def test_big_metadata_segments_are_passed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 60_000
    data = encode((30, 17), exif=exif, icc_profile=b"\0" * 300_000)
    assert header_of(data, 8192) == (30, 17, 6)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_counts_as_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert header_of(encode((30, 17), exif=exif), 4096) == (30, 17, 1)


def test_no_garbage_in_exif_costs_the_image_or_warns() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode((30, 17), exif=exif)
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
        data = encode((30, 17), kind=kind)
        for end in range(len(data)):
            header = read_header(data[:end], lambda cut=data[:end]: cut)
            assert header is None or header[:2] == (30, 17)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\0", b"\xff" * 4000, b"GIF89a", b"\0" * 99]
)
def test_what_is_no_image_gives_none(data: bytes) -> None:
    assert header_of(data) is None


def test_a_bomb_is_sized_without_a_warning() -> None:
    def png(side: int) -> bytes:
        ihdr = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
        idat = b"IDAT" + zlib.compress(b"\0" * 10)
        data = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
        return b"\x89PNG\r\n\x1a\n" + chunk + data

    limit = Image.MAX_IMAGE_PIXELS
    assert header_of(png(13_000)) == (13_000, 13_000, 1)
    assert header_of(png(14_000)) == (0, 0, 1)  # Pillow refuses; the size is not known
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
