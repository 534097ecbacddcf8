"""Width, height and EXIF orientation from the first bytes of an encoded image; no pixel is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

MAX_PIXELS = 178_956_970  # above this Pillow refuses an image as a decompression bomb
PREFIX = 8192  # bytes that hold the header of nearly every JPEG
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # by content: real data sets hold PNG files named .jpeg

_ORIENTATION_TAG = 0x0112
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what libjpeg-turbo decodes everywhere
_UNUSUAL = (0x00, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xD8, 0xD9, 0xDA)
_NO_LENGTH = (0x01, *range(0xD0, 0xD8))


class Header(NamedTuple):
    """Size in pixels as stored, before EXIF; `orientation` 1..8. Width 0: more than MAX_PIXELS, size not read."""

    width: int
    height: int
    orientation: int


def read_header(prefix: bytes, read_all: Callable[[], bytes]) -> Header | None:
    """Header of an image that starts with `prefix`; None where it cannot be read.

    `read_all` gives the whole image and is called only where `prefix` does not answer: other formats than JPEG, unusual
    JPEG, and headers that are longer (big EXIF or ICC segments).
    """
    if header := _jpeg_header(prefix):
        return header
    data = read_all()
    return _jpeg_header(data) or _pillow_header(data)


def _jpeg_header(data: bytes) -> Header | None:
    """Walk the segments of an ordinary JPEG up to its frame header; ten times as fast as Pillow, and as exact."""
    if data[:2] != b"\xff\xd8":
        return None
    at, exif = 2, b""
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _SOF:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if data[at + 4] != 8 or not height or not width:
                return None
            return Header(width, height, _orientation(exif) if exif else 1)
        if marker in _UNUSUAL or length < 2:
            return None
        if marker == 0xE1 and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : at + 2 + length]
        at += 2 + length
    return None


def _orientation(exif: bytes) -> int:
    def parse() -> Image.Exif:
        found = Image.Exif()
        found.load(exif)
        return found

    return _quiet_orientation(parse)


def _quiet_orientation(read: Callable[[], Image.Exif]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = read().get(_ORIENTATION_TAG, 1)
        except Exception:  # malformed EXIF makes Pillow raise nearly anything; the image is fine without
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pillow_header(data: bytes) -> Header | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bombs and broken metadata: the caller gets the size and judges
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            return Header(0, 0, 1)
        except (OSError, SyntaxError, ValueError):
            return None
    # Image's own getexif, as that of PNG decodes all pixels in search of metadata after them
    return Header(image.width, image.height, _quiet_orientation(lambda: Image.Image.getexif(image)))
