"""Steps that several contenders share: a random window, normalising and mixing in plain torch, as people write them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from race.setting import ALPHA, RATIO, SCALE, Setting


def mix(images: Tensor, labels: Tensor, setting: Setting, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix each row K times with a random other row.

    Takes images (B, 3, H, W), which it normalises if they are uint8, and int64 labels (B,) on the same device. Returns images
    (B*K, 3, H, W) of `setting.dtype` and float32 targets (B*K, num_classes); if `setting.k` is None, images and labels.

    `torch.lerp` reads and writes only once. On a CPU it was faster than a batched matmul of the (B, K, 2) weights with the
    stacked pairs, which was faster than `lam * x + (1 - lam) * x[partner]`.
    """
    images = (normalise(images) if images.dtype == torch.uint8 else images).to(getattr(torch, setting.dtype))
    if setting.k is None:
        return images, labels
    rows = len(images)
    partner = torch.from_numpy(generator.permutation(rows)).to(images.device)
    lam = torch.from_numpy(generator.beta(ALPHA, ALPHA, (rows, setting.k))).to(images.device, torch.float32)
    classes = one_hot(labels, setting.num_classes).float()
    mixed = lerp(images, partner, lam.to(images.dtype))
    return mixed.flatten(0, 1), lerp(classes, partner, lam).flatten(0, 1)


def lerp(rows: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Return lam[b, k] * rows[b] + (1 - lam[b, k]) * rows[partner[b]], shape (B, K, ...)."""
    weight = lam.reshape(*lam.shape, *[1] * (rows.ndim - 1))
    return torch.lerp(rows[partner][:, None], rows[:, None], weight)


def normalise(images: Tensor) -> Tensor:
    """Normalise uint8 images (B, 3, H, W) of any strides with ImageNet's mean and std; returns contiguous float32."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).mul_(255).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).mul_(255).view(3, 1, 1)
    return images.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def random_window(width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a window (x, y, width, height) as torchvision's RandomResizedCrop does, without torchvision.

    `width` and `height` are those of the image, in pixels. After ten failed tries it is the largest centred window.
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
