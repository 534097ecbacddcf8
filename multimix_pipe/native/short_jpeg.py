"""Decodes only the first rows of a JPEG: a smaller height in its header makes libjpeg-turbo stop there.

Most training windows end above the last row, and simplejpeg cannot decode part of an image. This saves 12% of the decoding time
(bench/loading.py mixing). It is correct because:

- A baseline JPEG with one scan stores its rows from top to bottom, and they do not depend on the height.
- Fancy upsampling of chroma reads one row below, which ROWS_BELOW includes: the rows equal those of the whole image to the bit.
- Every image is first decoded completely and strictly, so that damage anywhere in it is found. After that, the only warning left
  is that of the unread rows.

tests/test_native_decode.py checks this for each row of ten kinds of JPEG, for mutated ones, and for bytes that changed meanwhile.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from multimix_pipe.augment.host import Pixels

ROWS_BELOW = 1
"""Additional rows to decode below those that are needed."""

# marker codes, and the bytes of a frame header up to its components
_BASELINE = (0xC0, 0xC1)
_SCAN = 0xDA
_WITHOUT_LENGTH = (0x01, 0xFF, *range(0xD0, 0xDA))
_FRAME_BYTES = 10


def decode_jpeg(data: NDArray[np.uint8], strict: bool, memory: NDArray[np.uint8] | None = None) -> Pixels:
    """Decode with exact DCT and fancy upsampling, into `memory` if given.

    Raises ValueError for errors, if `strict` also for warnings, and if `memory` is too small.
    """
    image: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", fastdct=False, fastupsample=False, strict=strict, buffer=memory
    )
    return image


def decode_rows(data: NDArray[np.uint8], height_at: int, rows: int) -> Pixels | None:
    """Return the first rows of a JPEG with the height at byte `height_at`, or None if the bytes cannot be decoded."""
    height = data[height_at : height_at + 2].copy()
    data[height_at : height_at + 2] = divmod(rows, 256)
    try:
        return decode_jpeg(data, strict=False)
    except ValueError:
        return None
    finally:
        data[height_at : height_at + 2] = height


def place_of_height(data: NDArray[np.uint8]) -> int:
    """Return the byte offset of the height in a valid JPEG, or 0 if its rows are not stored from top to bottom."""
    header = data.data  # a memoryview gives ints, several times as fast as indexing the array
    if bytes(header[:2]) != b"\xff\xd8":
        return 0
    place, height_at, components = 2, 0, 0
    while place + _FRAME_BYTES <= len(header):
        mark, code, length = header[place], header[place + 1], header[place + 2] << 8 | header[place + 3]
        if mark != 0xFF or code in _WITHOUT_LENGTH:  # unusual here, though libjpeg skips them
            return 0
        if code == _SCAN:  # a scan of only some components stores their rows apart
            return height_at if header[place + 4] == components else 0
        if code in _BASELINE:
            height_at, components = place + 5, header[place + 9]
        place += 2 + length
    return 0
