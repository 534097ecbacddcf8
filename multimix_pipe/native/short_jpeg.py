"""Decoding only the first rows of a JPEG: a smaller height in its header makes libjpeg-turbo stop there.

A training window ends somewhere in the image, and no decoder on PyPI but NVIDIA's can be told so. It saves 12% of the decoding
time (bench/decode.py). It is sound because:

- In a baseline JPEG of one scan the rows lie in the order of the image: what comes before a row does not depend on the height.
- Smooth upsampling of chroma looks one row below, which ROWS_BELOW brings along: the rows equal those of the whole image to the
  bit.
- An image is decoded as a whole and strictly first, so that damage anywhere in it is found; the warning that rows are left over
  is the only one to come after that.

tests/test_native_decode.py holds this for each row of ten kinds of JPEG, for mutated ones, and for bytes that changed meanwhile.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from multimix_pipe.augment.host import Pixels

ROWS_BELOW = 1
"""Rows to decode below those that are wanted."""

# codes of markers, and the bytes of a frame's header up to its components
_BASELINE = (0xC0, 0xC1)
_SCAN = 0xDA
_WITHOUT_LENGTH = (0x01, 0xFF, *range(0xD0, 0xDA))
_FRAME_BYTES = 10


def decode_jpeg(data: NDArray[np.uint8], strict: bool) -> Pixels:
    """Decode with exact DCT and smooth upsampling. Raises ValueError, if `strict` for what libjpeg-turbo warns of too."""
    image: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False, strict=strict)
    return image


def decode_rows(data: NDArray[np.uint8], height_at: int, rows: int) -> Pixels | None:
    """The first rows of a JPEG whose header holds its height at byte `height_at`; None where it is not one."""
    height = data[height_at : height_at + 2].copy()
    data[height_at : height_at + 2] = divmod(rows, 256)
    try:
        return decode_jpeg(data, strict=False)
    except ValueError:
        return None
    finally:
        data[height_at : height_at + 2] = height


def place_of_height(data: NDArray[np.uint8]) -> int:
    """The byte of a sound JPEG at which its header holds the height, if all rows lie in the order of the image; else 0."""
    header = data.data  # a memoryview gives ints, several times as fast as NumPy
    if bytes(header[:2]) != b"\xff\xd8":
        return 0
    place, found, components = 2, 0, 0
    while place + _FRAME_BYTES <= len(header):
        mark, code, length = header[place], header[place + 1], header[place + 2] << 8 | header[place + 3]
        if mark != 0xFF or code in _WITHOUT_LENGTH:  # unusual here; libjpeg passes them
            return 0
        if code == _SCAN:  # one of all components, or their rows lie apart
            return found if header[place + 4] == components else 0
        if code in _BASELINE:
            found, components = place + 5, header[place + 9]
        place += 2 + length
    return 0
