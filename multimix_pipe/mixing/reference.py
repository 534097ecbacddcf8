"""The reference implementation of mixing in NumPy: slow, clear, and the oracle that every blend is tested against.

    x_k = w_k * x + (1 - w_k) * x'        y_k = lam_k * y + (1 - lam_k) * y'

Row b*K + k of a result is member k of pair b. All arithmetic is in float32, and both products are rounded before they are added.
With lam = 1 the result is therefore x to the bit, which x' + lam * (x - x') would not guarantee.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing.plan import MixPlan

Float = NDArray[np.float32]


def mix_images(images: Float, plan: MixPlan) -> Float:
    """Mix images (B, ...) float32 into (B*K, ...). Boxes span the last two axes, or the only one."""
    axes = images.shape[1:][-2:]
    height, width = (1, 1, *axes)[-2:]
    leading = [1] * (images.ndim - 1 - len(axes))
    return _mix(images, plan, plan.weights((height, width)).reshape(*plan.lam.shape, *leading, *axes))


def mix_targets(labels: NDArray[np.int64], plan: MixPlan, num_classes: int) -> Float:
    """Mix labels (B,) int64 into float32 target rows (B*K, num_classes), each of which sums to 1."""
    return _mix(np.eye(num_classes, dtype=np.float32)[labels], plan, plan.lam[..., None])


def _mix(values: Float, plan: MixPlan, weight: Float) -> Float:
    other = values[plan.partner]
    mixed = weight * values[:, None] + (np.float32(1) - weight) * (other if plan.partner.ndim == 2 else other[:, None])
    return mixed.reshape(-1, *values.shape[1:])
