"""The pixel's way to the model's input: `(pixel / 255 - mean) / std`, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.config import Transform
from multimix_pipe.runtime.kernels.layout import Layout


@dataclass(frozen=True, eq=False)
class Normalize:
    """`(pixel - mean) * scale` in float32, pixels 0..255: the same in every kernel, so that all agree to the bit."""

    mean: NDArray[np.float32]
    """(C,), of values 0..255."""
    scale: NDArray[np.float32]
    """(C,): 1 / standard deviation, of values 0..255."""
    channels_last: bool
    """Images are (B, H, W, C), not (B, C, H, W)."""

    @classmethod
    def of(cls, transform: Transform, channels_last: bool) -> Normalize:
        """As a loader's transform says."""
        mean, std = (255 * np.array(values, dtype=np.float64) for values in (transform.mean, transform.std))
        return cls(mean.astype(np.float32), (1 / std).astype(np.float32), channels_last)

    def shape(self, rows: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape of a batch of pixels."""
        channels = len(self.mean)
        return (rows, height, width, channels) if self.channels_last else (rows, channels, height, width)

    def layout(self, shape: Sequence[int]) -> Layout:
        """Where height and width lie in images of a batch of `shape`."""
        return Layout.of(shape[1:], axes=(0, 1) if self.channels_last else (1, 2))

    def channels_first(self, images: Tensor) -> Tensor:
        """A batch as (B, C, H, W), a view: the dimensions' order, not the memory's."""
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def per_plane(self, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and scale of each plane's element i at i % length, (planes, length): C planes of one channel each, or one of
        all channels in turn (`length` must be a multiple of C)."""
        if self.channels_last:
            turns = length // len(self.mean)
            return np.tile(self.mean, turns)[None], np.tile(self.scale, turns)[None]
        return np.repeat(self.mean[:, None], length, axis=1), np.repeat(self.scale[:, None], length, axis=1)
