"""Images of many kinds, and their encoded bytes."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image


def plain_image(size: tuple[int, int] = (12, 8), *, colour: int = 100, kind: str = "JPEG", **options: object) -> bytes:
    """Return an encoded image of one colour. `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, colour // 2, 255 - colour)).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(number: int, width: int, height: int) -> Image.Image:
    """Return a smooth random image: as for photos, decoders and resamplers differ little if adjacent pixels are similar."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return `image` encoded by Pillow in the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    """Return a JPEG with an EXIF orientation, 1..8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, subsampling=0, exif=exif)


KINDS: dict[str, Callable[[Image.Image], tuple[str, bytes]]] = {
    "420": lambda image: ("jpg", encoded(image, "JPEG", quality=90, subsampling=2)),
    "444": lambda image: ("jpg", encoded(image, "JPEG", quality=95, subsampling=0)),
    "progressive": lambda image: ("jpeg", encoded(image, "JPEG", quality=90, progressive=True)),
    "gray": lambda image: ("jpg", encoded(image.convert("L"), "JPEG", quality=90)),
    "rotated": lambda image: ("jpg", with_orientation(image, 6)),
    "png": lambda image: ("png", encoded(image, "PNG")),
    "alpha": lambda image: ("png", encoded(image.convert("RGBA"), "PNG")),
    "palette": lambda image: ("png", encoded(image.quantize(64), "PNG")),
    "webp": lambda image: ("webp", encoded(image, "WEBP", lossless=True)),
}
