"""Mixup with K interpolations, the slow and clear version: what every executor's output is tested against.

    x_k = lam_k * x + (1 - lam_k) * x'        y_k = lam_k * y + (1 - lam_k) * y'

Source: "Mixup Augmentation with Multiple Interpolations", arXiv 2406.01417; K = 1 is mixup, arXiv 1710.09412. Row b*K + k of a
result is pair b at weight k. All arithmetic is float32. The two products are rounded before they are added: so lam = 1 gives x
to the bit, which the form x' + lam * (x - x') does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def mix_images(images: Float, partner: NDArray[np.int64], lam: Float) -> Float:
    """images (B, ...), partner (B,), lam (B, K) -> (B*K, ...)."""
    pairs, k = lam.shape
    weight = lam.reshape(pairs, k, *[1] * (images.ndim - 1))
    mixed = weight * images[:, None] + (np.float32(1) - weight) * images[partner][:, None]
    return mixed.reshape(pairs * k, *images.shape[1:])


def mix_targets(labels: NDArray[np.int64], partner: NDArray[np.int64], lam: Float, num_classes: int) -> Float:
    """labels (B,), partner (B,), lam (B, K) -> (B*K, num_classes), rows that sum to 1."""
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    return mix_images(one_hot, partner, lam)
