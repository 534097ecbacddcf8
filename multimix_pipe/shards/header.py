"""Reads width, height and EXIF orientation from the first bytes of encoded images, without decoding pixels.

The common kinds of JPEG, PNG and EXIF are parsed here, JPEG in NumPy for many images at once. Pillow reads everything else;
the parsers here agree with it.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# the plugins here, not by Pillow in the thread that meets the first such image: a process that is forked during an import has an
# import lock that nobody releases
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin  # noqa: F401

MAX_PIXELS = 178_956_970  # Pillow refuses larger images as decompression bombs
MAX_BYTES = 2**28  # of an encoded image; a photo of MAX_PIXELS at the highest quality is smaller
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # detected by content: real data sets contain PNG files named .jpeg

UNREAD_FORMATS = ("GIF", "TIFF", "AVIF", "HEIC", "JPEG XL", "JPEG 2000", "an HTML page")
"""What is recognised and not read."""
_MAGICS = (
    rb"GIF8",
    rb"II\*\0|MM\0\*",
    rb"....ftypavi[fs]",
    rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)",
    rb"\xff\x0a|\0\0\0\x0cJXL ",
    rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    rb"(?i:\s*<(?:!doctype html|html))",
)
_UNREAD = tuple(re.compile(magic, re.DOTALL) for magic in _MAGICS)
_MAGIC_BYTES = 64

_SEGMENT, _FILL, _NO_LENGTH, _FRAME, _UNUSUAL = range(5)
_KINDS = np.full(256, _SEGMENT, np.uint8)
_KINDS[0xFF] = _FILL
_KINDS[[0x01, *range(0xD0, 0xD8)]] = _NO_LENGTH
_KINDS[[0xC0, 0xC1, 0xC2]] = _FRAME  # baseline, extended, progressive: what libjpeg-turbo decodes everywhere
_KINDS[[0x00, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xD8, 0xD9, 0xDA]] = _UNUSUAL
_STEPS = np.array([2, 1, 2, 0, 0])  # bytes to the next marker, without the length of the segment
_START, _APP1 = 0xD8, 0xE1
_MARKER = np.dtype(
    [("ff", "u1"), ("code", "u1"), ("length", ">u2"), ("precision", "u1"), ("height", ">u2"), ("width", ">u2")]
)
MAX_MARKERS = 64
MAX_READS = 16
_READ = 4096  # bytes read at a segment that is not in the buffer

_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_SHORT = 3  # the TIFF type of two bytes
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type


class Header(NamedTuple):
    """Size in pixels as stored, and EXIF orientation, 1..8. A width of 0 stands for more than MAX_PIXELS, -1 for an image
    without a valid header, and -2 - i for UNREAD_FORMATS[i].
    """

    width: int
    height: int
    orientation: int


UNREADABLE = Header(-1, -1, 1)


def read_headers(
    buffer: NDArray[np.uint8],
    start: NDArray[np.int64],
    have: NDArray[np.int64],
    size: NDArray[np.int64],
    read: Callable[[int, int, int], bytes],
) -> NDArray[np.int64]:
    """Return the Header fields of n images, (n, 3).

    Image i has `size[i]` bytes; `buffer[start[i] : start[i] + have[i]]` holds the first of them. `read(i, begin, end)`
    returns its bytes [begin, end), fewer if the image ends before; it is called only if those in the buffer do not suffice.
    """
    headers = np.tile(np.array(UNREADABLE), (len(start), 1))
    exif = _read_jpegs(headers, buffer, start, have, size, read)
    for i in np.flatnonzero(exif[:, 1] * (headers[:, 0] > 0)).tolist():
        headers[i, 2] = _orientation(read(i, *exif[i].tolist()))
    for i in np.flatnonzero(headers[:, 0] < 0).tolist():
        beginning = buffer[start[i] : start[i] + have[i]].tobytes()
        headers[i] = (
            _png_header(beginning)
            or _unread_header(read(i, 0, _MAGIC_BYTES))
            or _pillow_header(read(i, 0, min(int(size[i]), MAX_BYTES)))
            or UNREADABLE
        )
    return headers


def _unread_header(beginning: bytes) -> Header | None:
    return next((Header(-2 - i, -1, 1) for i, magic in enumerate(_UNREAD) if magic.match(beginning)), None)


def _read_jpegs(
    headers: NDArray[np.int64],
    buffer: NDArray[np.uint8],
    start: NDArray[np.int64],
    have: NDArray[np.int64],
    size: NDArray[np.int64],
    read: Callable[[int, int, int], bytes],
) -> NDArray[np.int64]:
    """Fill in the sizes of common JPEGs in `headers`; return begin and end of their EXIF segments, (n, 2), 0 if none."""
    exif = np.zeros((len(start), 2), dtype=np.int64)
    rows = np.flatnonzero(have >= _MARKER.itemsize)
    rows = rows[(buffer[start[rows]] == 0xFF) & (buffer[start[rows] + 1] == _START)]
    place, end, origin = start[rows] + 2, start[rows] + have[rows], start[rows]
    for _ in range(MAX_READS):
        rows, reached = _walk(headers, exif, buffer, rows, place, end, origin)
        more = reached + _MARKER.itemsize <= size[rows]
        rows, reached = rows[more], reached[more]
        if not len(rows):
            break
        pieces = [read(i, at, at + _READ) for i, at in zip(rows.tolist(), reached.tolist(), strict=True)]
        buffer = np.frombuffer(b"".join(pieces), np.uint8)
        lengths = np.array([len(piece) for piece in pieces])
        end = np.cumsum(lengths)
        place = end - lengths
        origin = place - reached
    return exif


def _walk(
    headers: NDArray[np.int64],
    exif: NDArray[np.int64],
    buffer: NDArray[np.uint8],
    rows: NDArray[np.intp],
    place: NDArray[np.int64],
    end: NDArray[np.int64],
    origin: NDArray[np.int64],
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Follow the markers of many images, one marker of each image per turn, to the frame header or the end of its bytes.

    For each image in `rows`, `place` is the position of its next marker in the buffer, `end` the end of its bytes there, and
    `origin` the position of its byte 0. Returns the rows whose bytes ended, and the byte of the image to continue at.
    """
    marked = np.ndarray((max(len(buffer) - _MARKER.itemsize + 1, 0),), _MARKER, buffer, strides=(1,))
    short_rows, short_reached = [rows[:0]], [place[:0]]
    for _ in range(MAX_MARKERS):
        inside = place + _MARKER.itemsize <= end
        if not inside.all():
            short_rows.append(rows[~inside])
            short_reached.append((place - origin)[~inside])
            rows, place, end, origin = rows[inside], place[inside], end[inside], origin[inside]
        if not len(rows):
            break
        marker = marked[place]
        kind, length = _KINDS[marker["code"]], marker["length"].astype(np.int64)
        kind[(marker["ff"] != 0xFF) | ((length < 2) & (kind == _SEGMENT))] = _UNUSUAL
        app1 = marker["code"] == _APP1
        if app1.any():
            _note_exif(exif, buffer, *(column[app1] for column in (rows, place, length, origin)))
        going = kind < _FRAME
        if not going.all():
            usual = (kind == _FRAME) & (marker["precision"] == 8) & (marker["height"] > 0) & (marker["width"] > 0)
            headers[rows[usual]] = np.stack([marker["width"][usual], marker["height"][usual], np.ones(usual.sum())], 1)
            columns = (rows, place, end, origin, kind, length)
            rows, place, end, origin, kind, length = (column[going] for column in columns)
        place = place + _STEPS[kind] + length * (kind == _SEGMENT)
    return np.concatenate(short_rows), np.concatenate(short_reached)


def _note_exif(
    exif: NDArray[np.int64],
    buffer: NDArray[np.uint8],
    rows: NDArray[np.intp],
    place: NDArray[np.int64],
    length: NDArray[np.int64],
    origin: NDArray[np.int64],
) -> None:
    """Record the first EXIF segment of each image, among the APP1 segments at the positions `place` of the buffer."""
    for row, at, size, first in zip(*(column.tolist() for column in (rows, place, length, origin)), strict=True):
        if not exif[row, 1] and buffer[at + 4 : at + 10].tobytes() == _EXIF:
            exif[row] = at - first + 4, at - first + 2 + size


def _orientation(exif: bytes) -> int:
    found = _plain_orientation(exif[len(_EXIF) :])
    if found is None:

        def parse() -> Image.Exif:
            parsed = Image.Exif()
            parsed.load(exif)
            return parsed

        found = _quiet_orientation(parse)
    return found if 1 <= found <= 8 else 1


def _plain_orientation(tiff: bytes) -> int | None:
    """Return the orientation in the first directory of well-formed TIFF (1 if it has none), or None for other data."""
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return None
    order = "<" if tiff[:1] == b"I" else ">"
    try:
        (directory,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        directory += 2
        entries = tiff[directory : directory + 12 * count]
        for tag, kind, items, value in struct.Struct(order + "HHL4s").iter_unpack(entries):
            if tag == _ORIENTATION_TAG:
                plain = (kind, items) == (_SHORT, 1)
                return int.from_bytes(value[:2], "big" if order == ">" else "little") if plain else None
            size = items * _TIFF_SIZES[kind]
            if size > 4 and struct.unpack(order + "L", value)[0] + size > len(tiff):
                return None
    except (struct.error, KeyError):
        return None
    return 1 if len(entries) == 12 * count else None


def _quiet_orientation(read: Callable[[], Image.Exif]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = read().get(_ORIENTATION_TAG, 1)
        except Exception:  # malformed EXIF makes Pillow raise almost anything; the image is usable without it
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_header(beginning: bytes) -> Header | None:
    """Return the header of a PNG whose pixels directly follow the header or the palette, or None for other data."""
    if not beginning.startswith(_PNG_START) or len(beginning) < 41:
        return None
    width, height, depth, colour, _, filtering = struct.unpack_from(">LLBBBB", beginning, 16)
    (checksum,) = struct.unpack_from(">L", beginning, 29)
    following = 33
    if beginning[37:41] == b"PLTE":
        following += 12 + struct.unpack_from(">L", beginning, 33)[0]
    plain = (
        beginning[following + 4 : following + 8] == b"IDAT" and depth in _PNG_DEPTHS.get(colour, ()) and not filtering
    )
    if not plain or zlib.crc32(beginning[12:29]) != checksum or not 0 < width * height <= MAX_PIXELS:
        return None
    return Header(width, height, 1)


def _pillow_header(data: bytes) -> Header | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images and broken metadata; the caller checks the size
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            return Header(0, 0, 1)
        except Exception:  # Pillow raises almost anything on corrupt data
            return None
    # Pillow's own limit can be switched off, and a side may not fit in 64 bits
    if image.width * image.height > MAX_PIXELS:
        return Header(0, 0, 1)
    # the base class's getexif: the one of PNG decodes all pixels to find metadata behind them
    return Header(image.width, image.height, _quiet_orientation(lambda: Image.Image.getexif(image)))
