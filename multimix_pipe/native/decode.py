"""Encoded bytes to pixels, on the host."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from multimix_pipe.augment.host import Pixels
from multimix_pipe.native.short_jpeg import ROWS_BELOW, decode_jpeg, decode_rows, place_of_height
from multimix_pipe.runtime.bad_samples import Encoded
from multimix_pipe.shards.header import FORMATS, MAX_PIXELS
from multimix_pipe.shards.index import Index


class UndecodableError(Exception):
    """The bytes are not an image that can be decoded; the message is the reason."""


def decode_indexed(data: Encoded, height: int, width: int) -> Pixels:
    """Decode an image whose index says (height, width) to uint8 (height, width, 3) RGB, as stored: EXIF is not applied.

    The error's message is the whole reason.
    """
    return _decode(data, height, width)[0]


class Decoder:
    """Decodes the samples of an index: each as a whole the first time, which shows whether it is damaged.

    From then on a baseline JPEG is decoded only down to the last row that is wanted (see `short_jpeg`). `ShardReader` knows by
    size and time that the bytes are still the same.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._height_at = np.zeros(len(index), dtype=np.int32)
        """Where a sample's header holds its height; 0: not known yet, -1: it cannot be shortened."""

    def decode(self, sample: int, data: Encoded, stop: int | None = None) -> Pixels:
        """uint8 (height, width, 3) RGB as `decode_indexed`; of its rows at least [0, stop). Writes to `data` meanwhile."""
        height, width = int(self._index.height[sample]), int(self._index.width[sample])
        if stop is None:
            return decode_indexed(data, height, width)
        at, rows = int(self._height_at[sample]), stop + ROWS_BELOW
        if at > 0 and rows < height:
            shortened = decode_rows(data, at, rows)
            if shortened is not None and shortened.shape[:2] == (rows, width):
                return shortened
            at = 0  # the bytes have changed
        image, plainly = _decode(data, height, width)
        if at == 0:
            self._height_at[sample] = (place_of_height(data) if plainly else 0) or -1
        return image


def _decode(data: Encoded, height: int, width: int) -> tuple[Pixels, bool]:
    """As `decode_indexed`, and whether libjpeg-turbo read it without complaint; Pillow is asked where it did not."""
    try:
        try:
            found_height, found_width, *_ = simplejpeg.decode_jpeg_header(data)
            _check_pixels(found_height, found_width)  # again, as the bytes may be others than were indexed
            image, plainly = decode_jpeg(data, strict=True), True
        except ValueError:  # other formats, and what there are warnings of
            image, plainly = _decode_with_pillow(data), False
    except UndecodableError as error:
        raise UndecodableError(f"cannot be decoded: {error}") from error
    if image.shape[:2] != (height, width):
        raise UndecodableError(f"decodes to {image.shape[1]}x{image.shape[0]} pixels, its index says {width}x{height}")
    return image, plainly


def _decode_with_pillow(data: Encoded) -> Pixels:
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
