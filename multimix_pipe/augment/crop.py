"""Crop windows and flips from uniform numbers: a vectorised RandomResizedCrop, and the centre crop of evaluation.

A window is (y, x, height, width) in pixels of the image after its EXIF orientation is applied; n windows are float32 (n, 4).
Windows for training are whole numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import EvalTransform, TrainTransform

TRIES = 10
UNIFORMS_PER_CROP = 2 * TRIES + 3  # an area and a ratio per try, the corner's y and x, the flip

Windows = NDArray[np.float32]
Uniform = NDArray[np.float64]


def random_windows(
    u: Uniform, width: NDArray[np.integer], height: NDArray[np.integer], transform: TrainTransform
) -> Windows:
    """Draw the windows of torchvision's RandomResizedCrop.

    Each of ten tries draws an area, uniform in `transform.scale` times the image's area, and an aspect ratio, log-uniform in
    `transform.ratio`. The first window that fits into the image is placed at a uniform position. If none fits, the window is
    the largest centred one with an aspect ratio within bounds.

    Args:
        u: (n, UNIFORMS_PER_CROP), uniform in (0, 1).
        width, height: (n,) sizes of the images in pixels, >= 1.
        transform: the bounds.

    Returns:
        (n, 4) float32 windows, whole numbers.
    """
    low, high = transform.scale
    area = (width * height)[:, None] * (low + (high - low) * u[:, :TRIES])
    log_low, log_high = np.log(transform.ratio)
    # rounded to float32 because the last bit of np.exp depends on the instruction set, and a window must not
    ratio = np.exp(log_low + (log_high - log_low) * u[:, TRIES : 2 * TRIES]).astype(np.float32).astype(np.float64)
    tried_width, tried_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (tried_width > 0) & (tried_height > 0) & (tried_width <= width[:, None]) & (tried_height <= height[:, None])

    first = np.argmax(fits, axis=1)
    rows = np.arange(len(u))
    found = fits[rows, first]
    centred_height, centred_width = _largest_within_ratio(width, height, transform.ratio)
    window_height = np.where(found, tried_height[rows, first], centred_height).astype(np.int64)
    window_width = np.where(found, tried_width[rows, first], centred_width).astype(np.int64)
    free_y, free_x = height - window_height, width - window_width
    y = np.where(found, _integers(u[:, 2 * TRIES], free_y + 1), free_y // 2)
    x = np.where(found, _integers(u[:, 2 * TRIES + 1], free_x + 1), free_x // 2)
    return np.stack([y, x, window_height, window_width], axis=1).astype(np.float32)


def random_flips(u: Uniform, probability: float) -> NDArray[np.bool_]:
    """Draw whether each image is mirrored left to right: bool (n,). `u` is the array that `random_windows` takes."""
    return u[:, 2 * TRIES + 2] < probability


def centre_windows(width: NDArray[np.integer], height: NDArray[np.integer], transform: EvalTransform) -> Windows:
    """Return what Resize(resize) followed by CenterCrop(size) shows, as windows of the original images.

    Windows are (n, 4) float32 and may cut through pixels. The resized sides and the crop's corner are rounded as torchvision
    rounds them. `width` and `height` are (n,) sizes in pixels, >= 1.
    """
    shorter = np.minimum(width, height)
    sides = []
    for side, size in zip((height, width), transform.height_width, strict=True):
        resized = np.where(
            side == shorter, transform.shorter_side, (transform.shorter_side * side) // np.maximum(shorter, 1)
        )
        visible = np.minimum(size, resized)
        start = np.rint((resized - visible) / 2)
        sides.append((start * side / resized, visible * side / resized))
    (y, window_height), (x, window_width) = sides
    return np.stack([y, x, window_height, window_width], axis=1).astype(np.float32)


def enclosing_windows(windows: Windows) -> Windows:
    """Return the smallest window that encloses all K windows of each image: float32 (n, 4) for windows (n, K, 4)."""
    corner = windows[..., :2].min(axis=1)
    stop = (windows[..., :2] + windows[..., 2:]).max(axis=1)
    return np.concatenate([corner, stop - corner], axis=1)


def _integers(u: Uniform, stop: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.floor(u * stop).astype(np.int64)


def _largest_within_ratio(
    width: NDArray[np.integer], height: NDArray[np.integer], ratio: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    current = width / np.maximum(height, 1)
    window_height = np.where(current < ratio[0], np.rint(width / ratio[0]), height)
    window_width = np.where(current > ratio[1], np.rint(height * ratio[1]), width)
    return np.clip(window_height, 1, height), np.clip(window_width, 1, width)
