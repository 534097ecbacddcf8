"""Augmentations on the host: orients, crops and resizes a decoded image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from multimix_pipe.config import Transform

Pixels = NDArray[np.uint8]
"""(height, width, 3) RGB."""

_TRANSPOSED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image[:, ::-1].transpose(1, 0, 2),
}


def crop_and_resize(
    image: Pixels, transform: Transform, *, window: NDArray[np.float32] | None, orientation: int
) -> Pixels:
    """Crop and resize a decoded image to contiguous uint8 (height, width, 3) of the transform's size.

    Args:
        image: the decoded image, as stored.
        transform: output size and antialiasing.
        window: (y, x, height, width) of the crop, in pixels after `orientation` is applied. None: `image` is cropped already.
        orientation: EXIF orientation to apply to `image`, 1..8; 1 applies none.
    """
    image, size = apply_orientation(image, orientation), transform.height_width
    if window is None:
        image = resize(image, *size, transform.antialias)
    elif transform.random:
        image = resize(crop_whole(image, window), *size, transform.antialias)
    else:
        image = resize_window(image, window, *size, transform.antialias)
    return np.ascontiguousarray(image)


def apply_orientation(image: Pixels, orientation: int) -> Pixels:
    """Return a view of `image` with its EXIF orientation (1..8) applied."""
    return _TRANSPOSED[orientation](image)


def crop_whole(image: Pixels, window: NDArray[np.float32]) -> Pixels:
    """Return the window (y, x, height, width), in whole pixels, as a view."""
    y, x, height, width = map(int, window.tolist())
    return image[y : y + height, x : x + width]


def resize(image: Pixels, height: int, width: int, antialias: bool) -> Pixels:
    """Resize bilinearly to uint8 (height, width, 3). With `antialias` the filter is Pillow's."""
    if image.shape[:2] == (height, width):
        return image
    # torch would copy a window, too, with a team of OpenMP threads for each thread that calls it: 256 of them on 16 cores
    image = np.ascontiguousarray(image)
    # NumPy makes the views, as each of torch's would release the GIL and have to wait for it again. With image[None] the batch
    # axis would have the stride 0; torch would then write planes, not pixels.
    batch = torch.from_numpy(image.reshape(1, *image.shape).transpose(0, 3, 1, 2))
    resized = torch.nn.functional.interpolate(batch, size=(height, width), mode="bilinear", antialias=antialias)
    pixels: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return pixels


def resize_window(image: Pixels, window: NDArray[np.float32], height: int, width: int, antialias: bool) -> Pixels:
    """Resample the window (y, x, height, width), which may cut through pixels, to uint8 (height, width, 3).

    Pixels just outside the window contribute at its edges, as they do when the whole image is resized and then cropped.
    """
    y, x, window_height, window_width = window.tolist()
    if antialias:
        box = (x, y, min(x + window_width, image.shape[1]), min(y + window_height, image.shape[0]))
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            (width, height), Image.Resampling.BILINEAR, box=box
        )
        return np.asarray(resized)
    return _sample_linear(image, y, x, window_height / height, window_width / width, height, width)


def _sample_linear(image: Pixels, y: float, x: float, step_y: float, step_x: float, height: int, width: int) -> Pixels:
    rows, above = _neighbours(y, step_y, height, image.shape[0])
    columns, left = _neighbours(x, step_x, width, image.shape[1])
    vertical = image[rows[0]] * (1 - above)[:, None, None] + image[rows[1]] * above[:, None, None]
    both = vertical[:, columns[0]] * (1 - left)[None, :, None] + vertical[:, columns[1]] * left[None, :, None]
    return np.rint(both).astype(np.uint8)


def _neighbours(
    start: float, step: float, count: int, size: int
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float32]]:
    """Return the two pixels around each of `count` sampling points, and the weight of the second one."""
    centre = np.clip(start + (np.arange(count) + 0.5) * step - 0.5, 0, size - 1)
    first = np.floor(centre).astype(np.intp)
    return (first, np.minimum(first + 1, size - 1)), (centre - first).astype(np.float32)
