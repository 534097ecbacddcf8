"""Images of many kinds, and the bytes of their files."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image


def plain_image(size: tuple[int, int] = (12, 8), *, colour: int = 100, kind: str = "JPEG", **options: object) -> bytes:
    """An image of one colour, `size` as (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, colour // 2, 255 - colour)).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(number: int, width: int, height: int) -> Image.Image:
    """A smooth random image: decoders and resamplers differ least where neighbours are alike, as in photos."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of `image` in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    """A JPEG whose EXIF asks for `orientation`."""
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
