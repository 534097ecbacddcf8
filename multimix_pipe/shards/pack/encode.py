"""Reads images for packing and re-encodes them on request, in threads."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image as PillowImage

from multimix_pipe.shards.header import FORMATS
from multimix_pipe.shards.pack.imagefolder import Image, ImageFolder

DEFAULT_QUALITY = 90  # of JPEG, if only `max_side` is given
_MAX_AHEAD = 64  # images
_ORIENTATION_TAG = 0x0112
_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # convert("RGB") preserves their colours


def encode_images(
    folder: ImageFolder, images: Sequence[Image], max_side: int | None, quality: int | None, pool: ThreadPoolExecutor
) -> Iterator[tuple[bytes, str, bool]]:
    """Yield (bytes, extension, whether re-encoding succeeded) of each image in order; threads run a bounded way ahead."""

    def encode(image: Image) -> tuple[bytes, str, bool]:
        data = folder.read(image)
        if max_side is None and quality is None:
            return data, image.extension, True
        try:
            smaller = _reencode(data, max_side, quality)
        except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError):
            return data, image.extension, False
        return (data, image.extension, True) if smaller is None else (smaller, "jpg", True)

    ahead: deque[Future[tuple[bytes, str, bool]]] = deque()
    for image in images:
        ahead.append(pool.submit(encode, image))
        if len(ahead) >= _MAX_AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _reencode(data: bytes, max_side: int | None, quality: int | None) -> bytes | None:
    """Return the image as JPEG, its longest side at most `max_side` pixels; None if it can stay unchanged."""
    image: PillowImage.Image = PillowImage.open(io.BytesIO(data), formats=FORMATS)
    scale = min(1.0, max_side / max(image.size)) if max_side else 1.0
    if scale == 1.0 and quality is None:
        return None
    if image.mode not in _PLAIN_MODES:
        raise ValueError(f"no conversion of {image.mode} to 8 bits")
    exif = PillowImage.Exif()
    if (orientation := image.getexif().get(_ORIENTATION_TAG, 1)) != 1:
        exif[_ORIENTATION_TAG] = orientation  # pixels stay as stored, so the tag is still needed
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.mode != "L":
        image = image.convert("RGB")
    if scale < 1.0:
        image = image.resize(size, PillowImage.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality or DEFAULT_QUALITY, exif=exif)
    return buffer.getvalue()
