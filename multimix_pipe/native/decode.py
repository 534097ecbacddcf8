"""Decodes images on the host."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from multimix_pipe.augment.host import Pixels
from multimix_pipe.native.short_jpeg import ROWS_BELOW, decode_jpeg, decode_rows, place_of_height
from multimix_pipe.runtime.bad_samples import Encoded
from multimix_pipe.shards.header import FORMATS, MAX_PIXELS
from multimix_pipe.shards.index import Index


class UndecodableError(Exception):
    """The bytes cannot be decoded to an image; the message is the reason."""


def decode_indexed(data: Encoded, height: int, width: int) -> Pixels:
    """Decode an image, indexed as (height, width), to uint8 (height, width, 3) RGB, without applying EXIF orientation.

    Raises UndecodableError.
    """
    return _decode(data, height, width)[0]


class Decoder:
    """Decodes the samples of an index: each one completely the first time, which shows whether it is damaged.

    Afterwards a baseline JPEG is decoded only down to the last row that is needed (see `short_jpeg`). `ShardReader` checks the
    size and modification time of the shard, so the bytes are still the same.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._height_at = np.zeros(len(index), dtype=np.int32)
        """Byte offset of the height in each sample's header; 0: not known yet, -1: the sample cannot be shortened."""

    def decode(self, sample_id: int, data: Encoded, stop: int | None = None) -> Pixels:
        """Return at least rows [0, stop) of the image that `decode_indexed` returns; all rows by default.

        Changes `data` temporarily.
        """
        height, width = int(self._index.height[sample_id]), int(self._index.width[sample_id])
        if stop is None:
            return decode_indexed(data, height, width)
        at, rows = int(self._height_at[sample_id]), stop + ROWS_BELOW
        if at > 0 and rows < height:
            shortened = decode_rows(data, at, rows)
            if shortened is not None and shortened.shape[:2] == (rows, width):
                return shortened
            at = 0  # the bytes have changed
        image, is_clean = _decode(data, height, width)
        if at == 0:
            self._height_at[sample_id] = (place_of_height(data) if is_clean else 0) or -1
        return image


def _decode(data: Encoded, height: int, width: int) -> tuple[Pixels, bool]:
    """Decode as `decode_indexed`; also return whether libjpeg-turbo did so without a warning. If not, Pillow decodes it."""
    try:
        try:
            memory = np.empty(height * width * 3, dtype=np.uint8)  # too small if the bytes have changed since indexing
            image, is_clean = decode_jpeg(data, strict=True, memory=memory), True
        except ValueError:  # other formats, and JPEGs with warnings
            image, is_clean = _decode_with_pillow(data), False
    except UndecodableError as error:
        raise UndecodableError(f"cannot be decoded: {error}") from error
    if image.shape[:2] != (height, width):
        raise UndecodableError(f"decodes to {image.shape[1]}x{image.shape[0]} pixels, the index says {width}x{height}")
    return image, is_clean


def _decode_with_pillow(data: Encoded) -> Pixels:
    encoded = data.tobytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(image.height, image.width)  # Pillow's own limit can be switched off
            if image.format == "PNG":
                _check_png(encoded)
            if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            # Pillow warns if a palette with transparency becomes RGB
            opaque = image.convert("RGBA") if image.mode == "P" else image
            return np.array(opaque.convert("RGB"))  # a copy, as torch warns about read-only memory
    except (UndecodableError, MemoryError):  # a MemoryError is not the fault of the image
        raise
    except UnidentifiedImageError:  # its message contains a memory address
        raise UndecodableError("not an image of a known format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        raise UndecodableError(f"{type(error).__name__}: {error}") from error


def _check_pixels(height: int, width: int) -> None:
    """Raise UndecodableError for more than MAX_PIXELS: decoders allocate the memory before they read the pixels."""
    if height * width > MAX_PIXELS:
        raise UndecodableError(f"required at most {MAX_PIXELS:,} pixels, found {width}x{height}")


def _check_png(data: bytes) -> None:
    """Raise ValueError if a checksum of the pixel data is wrong. Pillow ignores these; libpng, and so DALI, checks them."""
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">L4s", data, place)
        end = place + 8 + size
        if kind == b"IDAT" and struct.unpack_from(">L", data, end) != (zlib.crc32(data[place + 4 : end]),):
            raise ValueError("wrong checksum of the PNG's pixel data")
        place = end + 4
