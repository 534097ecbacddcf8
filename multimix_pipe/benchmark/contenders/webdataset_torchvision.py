"""webdataset and torch's DataLoader; worker processes decode with torchvision.io and transform with its v2 transforms.

As torchvision's documentation recommends: tensors, uint8 through the crop and the resize, float32 and normalised then; all of
that in the workers. The main process mixes in plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from multimix_pipe.benchmark.contenders.webdataset_source import kept_ready, mixed_batches
from multimix_pipe.benchmark.setting import RATIO, SCALE, Setting
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD

TITLE = "DataLoader, webdataset, torchvision"
NEEDS = ("webdataset", "torchvision")
MIXES = None
queued = kept_ready


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    return mixed_batches(setting, _Transform(setting))


class _Transform:
    def __init__(self, setting: Setting) -> None:
        from torchvision.transforms import v2

        self._apply: Any = v2.Compose(
            [
                v2.RandomResizedCrop(setting.size, scale=SCALE, ratio=RATIO, antialias=setting.antialias),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __call__(self, sample: tuple[bytes, int]) -> tuple[torch.Tensor, int]:
        encoded, label = sample
        return self._apply(decode(encoded)), label


def decode(encoded: bytes) -> torch.Tensor:
    """(3, H, W) uint8; a JPEG goes to `decode_jpeg`."""
    from torchvision.io import decode_image

    pixels: torch.Tensor = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode="RGB")
    return pixels
