"""webdataset and torch's DataLoader; worker processes decode and transform with Pillow, the main process mixes in plain torch."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from multimix_pipe.benchmark.contenders.crops import random_window
from multimix_pipe.benchmark.contenders.webdataset_source import kept_ready, mixed_batches
from multimix_pipe.benchmark.setting import Setting
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD

TITLE = "DataLoader, webdataset, Pillow"
NEEDS = ("webdataset",)
MIXES = None
queued = kept_ready


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    return mixed_batches(setting, _Transform(setting))


class _Transform:
    """What torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize do to a Pillow image."""

    def __init__(self, setting: Setting) -> None:
        self._size, self._antialias = (setting.size, setting.size), setting.antialias
        self._draw: np.random.Generator | None = None
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __call__(self, sample: tuple[bytes, int]) -> tuple[torch.Tensor, int]:
        encoded, label = sample
        if self._draw is None:  # in each worker its own
            self._draw = np.random.default_rng()
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        x, y, width, height = random_window(*image.size, self._draw)
        box = (x, y, x + width, y + height)
        if self._antialias:
            image = image.resize(self._size, Image.Resampling.BILINEAR, box=box)
        else:
            image = image.transform(self._size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
        if self._draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(self._mean).div_(self._std), label
