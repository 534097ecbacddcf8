"""EXIF orientation, applied as the index records it.

DALI can apply the orientation itself, but its parser and Pillow's read malformed EXIF differently (two Exif segments, a wrong
type or count, PNG text profiles), and a window drawn for one may lie outside the other's image. So DALI always decodes images
as stored, and the graph orients them: it mirrors rows and columns, and then swaps the axes for orientations 5 to 8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FLIPS_ROWS = np.array([False, False, False, True, True, False, True, True, False])  # by orientation, 1..8
_FLIPS_COLUMNS = np.array([False, False, True, True, False, False, False, True, True])


def stored_windows(
    window: NDArray[np.float32],
    orientation: NDArray[np.uint8],
    height: NDArray[np.int32],
    width: NDArray[np.int32],
) -> NDArray[np.float32]:
    """Map windows (B, 4), given as (y, x, height, width) in the oriented images, to the images as stored.

    height, width: (B,), of the images as stored.
    """
    transposed = (orientation >= 5)[:, None]
    rows, columns, extent_rows, extent_columns = np.where(transposed, window[:, [1, 0, 3, 2]], window).T
    rows = np.where(_FLIPS_ROWS[orientation], height - rows - extent_rows, rows)
    columns = np.where(_FLIPS_COLUMNS[orientation], width - columns - extent_columns, columns)
    return np.stack([rows, columns, extent_rows, extent_columns], axis=1).astype(np.float32)


def stored_sizes(orientation: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Return (B, 2): height and width, before orienting, of images that are (height, width) afterwards."""
    return np.where((orientation >= 5)[:, None], [width, height], [height, width]).astype(np.float32)


def turns(orientation: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Return (B, 2, 3): maps from (x, y) in an oriented (height, width) image to (x, y) in the image before orienting."""
    matrix = np.zeros((len(orientation), 2, 3), dtype=np.float32)
    transposed = orientation >= 5
    stored = stored_sizes(orientation, height, width)
    for axis, flips, side in ((0, _FLIPS_COLUMNS, stored[:, 1]), (1, _FLIPS_ROWS, stored[:, 0])):
        flipped = flips[orientation]
        source = np.where(transposed, 1 - axis, axis)
        matrix[np.arange(len(matrix)), axis, source] = np.where(flipped, -1, 1)
        matrix[:, axis, 2] = np.where(flipped, side, 0)
    return matrix
