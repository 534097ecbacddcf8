"""Steps that several peers need: a random window, normalising and mixing a batch in plain torch, as people write them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from race.setting import ALPHA, RATIO, SCALE, Setting


def mix(images: Tensor, labels: Tensor, setting: Setting, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """K mixes of each row with a random other row.

    images (B, C, H, W) floating, labels (B,) int64, on the same device -> images (B*K, C, H, W) of `setting.dtype`, float32
    targets (B*K, num_classes); as they came, but for the type, where `setting.k` is None.

    `torch.lerp` reads and writes once: of what people write, it was faster on a CPU than a batched matmul of the (B, K, 2)
    weights with the stacked pairs, and that faster than `lam * x + (1 - lam) * x[partner]`.
    """
    images = images.to(getattr(torch, setting.dtype))
    if setting.k is None:
        return images, labels
    rows = len(images)
    partner = torch.from_numpy(generator.permutation(rows)).to(images.device)
    lam = torch.from_numpy(generator.beta(ALPHA, ALPHA, (rows, setting.k))).to(images.device, torch.float32)
    classes = one_hot(labels, setting.num_classes).float()
    mixed = _lerp(images, partner, lam.to(images.dtype))
    return mixed.flatten(0, 1), _lerp(classes, partner, lam).flatten(0, 1)


def _lerp(rows: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """lam[b, k] * rows[b] + (1 - lam[b, k]) * rows[partner[b]], as (B, K, ...)."""
    weight = lam.reshape(*lam.shape, *[1] * (rows.ndim - 1))
    return torch.lerp(rows[partner][:, None], rows[:, None], weight)


def normalise(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) of any strides -> float32 (B, 3, H, W), contiguous, by ImageNet's mean and std."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).mul_(255).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).mul_(255).view(3, 1, 1)
    return images.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def random_window(width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop for those that do without torchvision: a window (x, y, width, height).

    width, height: of the image, in pixels. Ten tries, else the largest centred window.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        area = width * height * draw.uniform(*SCALE)
        ratio = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1)), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h
