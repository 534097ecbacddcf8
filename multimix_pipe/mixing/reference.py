"""The reference implementation of mixing in NumPy: slow, clear, and the oracle that every blend is tested against.

    x_k = w_k * x + (1 - w_k) * z_k       y_k = lam_k * y + (1 - lam_k) * y'

Row b*K + k of a result is member k of pair b. All arithmetic is in float32, and both products are rounded before they are added.
With lam = 1 the result is therefore x to the bit, which x' + lam * (x - x') would not guarantee.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing.method import Field
from multimix_pipe.mixing.plan import MixPlan

Float = NDArray[np.float32]


def mix_images(images: Float, plan: MixPlan, z: Float | None = None) -> Float:
    """Mix images (B, ...) float32 into (B*K, ...). Boxes span the last two axes, or the only one.

    z: (B, K, ...), the images that are mixed with; by default `partners(images, plan)`. Pass it to mix images that were
    normalised after the partners were resized and rounded to whole pixels.
    """
    axes = images.shape[1:][-2:]
    height, width = (1, 1, *axes)[-2:]
    leading = [1] * (images.ndim - 1 - len(axes))
    weight = plan.weights((height, width)).reshape(*plan.lam.shape, *leading, *axes)
    return _mix(images, weight, partners(images, plan) if z is None else z)


def partners(images: NDArray[Any], plan: MixPlan) -> NDArray[Any]:
    """Return z_k, (B, K, ...): x', with x' resized to the box in the boxes of ResizeMix. uint8 images are rounded."""
    partner = plan.member_partner
    z = images[partner]
    for b in np.flatnonzero(plan.field == Field.RESIZED):
        for k in range(plan.k):
            y0, x0, y1, x1 = plan.box[b, k]
            if y0 < y1 and x0 < x1:
                image = images[partner[b, k]]
                image = image if image.ndim > 1 else image[None]
                patch = resize_rows(y1 - y0, image.shape[-2]) @ image @ resize_rows(x1 - x0, image.shape[-1]).T
                z[b, k, ..., y0:y1, x0:x1] = np.floor(patch + 0.5) if images.dtype == np.uint8 else patch
    return z


def resize_rows(size: int, original: int) -> NDArray[np.float64]:
    """Return the weights (size, original) of antialiased bilinear resampling in one axis, as in Pillow: each row sums to 1."""
    scale = original / size
    centre = (np.arange(size)[:, None] + 0.5) * scale
    weight = np.maximum(0, 1 - np.abs(np.arange(original) + 0.5 - centre) / max(scale, 1))
    rows: NDArray[np.float64] = weight / weight.sum(axis=1, keepdims=True)
    return rows


def mix_targets(labels: NDArray[Any], plan: MixPlan, num_classes: int) -> Float:
    """Mix labels (B,) int64, or rows (B, num_classes) float32, into float32 target rows (B*K, num_classes)."""
    rows = labels if labels.dtype == np.float32 else np.eye(num_classes, dtype=np.float32)[labels]
    return _mix(rows, plan.lam[..., None], rows[plan.member_partner])


def _mix(values: Float, weight: Float, z: Float) -> Float:
    mixed = weight * values[:, None] + (np.float32(1) - weight) * z
    return mixed.reshape(-1, *values.shape[1:])
