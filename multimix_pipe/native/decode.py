"""Encoded bytes to pixels, on the host."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from multimix_pipe.pixels import Pixels
from multimix_pipe.shards.header import FORMATS, MAX_PIXELS


class UndecodableError(Exception):
    """The bytes are not an image that can be decoded; the message is the reason."""


def decode_rgb(data: NDArray[np.uint8]) -> Pixels:
    """Decode to uint8 (height, width, 3) RGB, as stored (EXIF orientation is not applied).

    libjpeg-turbo with exact DCT and smooth upsampling; what that cannot read (other formats, CMYK) is left to Pillow.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_pixels(height, width)  # again, as the bytes may be others than were indexed
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return _decode_with_pillow(data)
    return pixels


def decode_indexed(data: NDArray[np.uint8], height: int, width: int) -> Pixels:
    """`decode_rgb` of an image whose index says (height, width). The error's message is the whole reason."""
    try:
        image = decode_rgb(data)
    except UndecodableError as error:
        raise UndecodableError(f"cannot be decoded: {error}") from error
    if image.shape[:2] != (height, width):
        raise UndecodableError(f"decodes to {image.shape[1]}x{image.shape[0]} pixels, its index says {width}x{height}")
    return image


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
