"""Encoded bytes to pixels, on the host."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from multimix_pipe.augment.host import Pixels
from multimix_pipe.shards.header import FORMATS, MAX_PIXELS
from multimix_pipe.shards.index import Index

_ROWS_BELOW = 1  # smooth upsampling looks at the row of chroma below: the image's next row brings it

# of JPEG: codes of markers, and the bytes of a frame's header up to its components
_BASELINE = (0xC0, 0xC1)
_SCAN = 0xDA
_WITHOUT_LENGTH = (0x01, 0xFF, *range(0xD0, 0xDA))
_FRAME_BYTES = 10


class UndecodableError(Exception):
    """The bytes are not an image that can be decoded; the message is the reason."""


def decode_indexed(data: NDArray[np.uint8], height: int, width: int) -> Pixels:
    """Decode an image whose index says (height, width) to uint8 (height, width, 3) RGB, as stored: EXIF is not applied.

    The error's message is the whole reason.
    """
    return _decode(data, height, width)[0]


class Decoder:
    """Decodes the samples of an index: each as a whole the first time, which tells whether it is damaged.

    From then on a baseline JPEG is decoded down to the last row that is wanted, and gives the same pixels in less time: a decoder
    that is told that the image ends there stops there. That the bytes are still the same `ShardReader` knows, by size and time.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._height_at = np.zeros(len(index), dtype=np.int32)
        """Byte at which a sample's header says its height; 0: not decoded yet, or no baseline JPEG."""

    def decode(self, sample: int, data: NDArray[np.uint8], past: int | None = None) -> Pixels:
        """uint8 (height, width, 3) RGB as `decode_indexed`; of its rows at least [0, past). Writes to `data` meanwhile."""
        height, width = int(self._index.height[sample]), int(self._index.width[sample])
        if past is None:
            return decode_indexed(data, height, width)
        at, rows = int(self._height_at[sample]), past + _ROWS_BELOW
        if at and rows < height:
            shortened = _decode_rows(data, at, rows)
            if shortened is not None and shortened.shape[:2] == (rows, width):
                return shortened  # else the bytes are others by now
        image, plainly = _decode(data, height, width)
        self._height_at[sample] = _place_of_height(data) if plainly else 0
        return image


def _decode_rows(data: NDArray[np.uint8], height_at: int, rows: int) -> Pixels | None:
    """The first rows of a JPEG whose header says its height at byte `height_at`; None where it is not one."""
    said = data[height_at : height_at + 2].copy()
    data[height_at : height_at + 2] = divmod(rows, 256)
    try:
        return _decode_jpeg(data, strict=False)  # there is a warning of the rows left over
    except ValueError:
        return None
    finally:
        data[height_at : height_at + 2] = said


def _decode(data: NDArray[np.uint8], height: int, width: int) -> tuple[Pixels, bool]:
    """As `decode_indexed`; and whether libjpeg-turbo has read it without complaint. Pillow is asked where not."""
    try:
        try:
            found_height, found_width, *_ = simplejpeg.decode_jpeg_header(data)
            _check_pixels(found_height, found_width)  # again, as the bytes may be others than were indexed
            image, plainly = _decode_jpeg(data, strict=True), True
        except ValueError:  # other formats, and what there are warnings of
            image, plainly = _decode_with_pillow(data), False
    except UndecodableError as error:
        raise UndecodableError(f"cannot be decoded: {error}") from error
    if image.shape[:2] != (height, width):
        raise UndecodableError(f"decodes to {image.shape[1]}x{image.shape[0]} pixels, its index says {width}x{height}")
    return image, plainly


def _decode_jpeg(data: NDArray[np.uint8], strict: bool) -> Pixels:
    """With exact DCT and smooth upsampling. Raises ValueError, if `strict` of what libjpeg-turbo warns of too."""
    image: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False, strict=strict)
    return image


def _place_of_height(data: NDArray[np.uint8]) -> int:
    """The byte of a sound JPEG at which its header says the height, where all rows lie in the order of the image; else 0."""
    if bytes(data[:2]) != b"\xff\xd8":
        return 0
    place, found, components = 2, 0, 0
    while place + _FRAME_BYTES <= len(data):
        mark, code, length = int(data[place]), int(data[place + 1]), int(data[place + 2]) << 8 | int(data[place + 3])
        if mark != 0xFF or code in _WITHOUT_LENGTH:  # unusual here; libjpeg passes them
            return 0
        if code == _SCAN:  # one of all components, or their rows lie apart
            return found if data[place + 4] == components else 0
        if code in _BASELINE:
            found, components = place + 5, int(data[place + 9])
        place += 2 + length
    return 0


def _decode_with_pillow(data: NDArray[np.uint8]) -> Pixels:
    encoded = data.tobytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(image.height, image.width)  # Pillow's own limit can be switched off
            if image.format == "PNG":
                _check_png(encoded)
            if image.mode.startswith("I"):  # 16 bits of gray, which convert() would clip
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            opaque = image.convert("RGBA") if image.mode == "P" else image  # Pillow warns of P with transparency to RGB
            return np.array(opaque.convert("RGB"))  # a copy: torch warns of memory that cannot be written
    except (UndecodableError, MemoryError):  # of the latter the image is not to blame
        raise
    except UnidentifiedImageError:  # its message holds an address in memory
        raise UndecodableError("no image of a known format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        raise UndecodableError(f"{type(error).__name__}: {error}") from error


def _check_pixels(height: int, width: int) -> None:
    """Raise UndecodableError where there are more than MAX_PIXELS: their memory would be taken before they are read."""
    if height * width > MAX_PIXELS:
        raise UndecodableError(f"required at most {MAX_PIXELS:,} pixels, found {width}x{height}")


def _check_png(data: bytes) -> None:
    """Raise ValueError where the pixels' checksums are wrong. Pillow does not look at them; libpng, and so DALI, does."""
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">L4s", data, place)
        end = place + 8 + size
        if kind == b"IDAT" and struct.unpack_from(">L", data, end) != (zlib.crc32(data[place + 4 : end]),):
            raise ValueError("wrong checksum of a PNG's pixels")
        place = end + 4
