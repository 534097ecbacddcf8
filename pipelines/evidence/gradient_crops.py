"""Random crops for gradient_variance.py, and what they add to the variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multimix_pipe import TrainTransform
from multimix_pipe.augment.crop import UNIFORMS_PER_CROP, random_flips, random_windows

SCALE = (0.5, 1.0)
"""Area of a crop, as a fraction of the image's."""


def random_crops(images: Tensor, members: int, size: int, seed: Sequence[int]) -> Tensor:
    """Return `members` crops of each image, resized and flipped at random as the loader does: (B*members, C, size, size).

    `images` are (B, C, H, W); crop k of image b is row b*members + k.
    """
    transform = TrainTransform(size=size, scale=SCALE)
    u = np.random.default_rng(seed).random((len(images) * members, UNIFORMS_PER_CROP))
    height, width = (np.full(len(u), side) for side in images.shape[2:])
    windows = random_windows(u, width, height, transform).astype(int)
    rows = [
        resize(images[row // members, None, :, y : y + h, x : x + w], size)
        for row, (y, x, h, w) in enumerate(windows.tolist())
    ]
    crops, flips = torch.cat(rows), torch.from_numpy(random_flips(u, transform.flip))
    return torch.where(flips[:, None, None, None], crops.flip(-1), crops)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, size, size)."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
