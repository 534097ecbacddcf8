"""Normalisation of pixels for the model: `(pixel / 255 - mean) / std` for each channel."""

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
    """`(pixel - mean) * scale` in float32, for pixels in 0..255. All kernels compute this, and so agree to the bit."""

    mean: NDArray[np.float32]
    """(C,), on the scale 0..255."""
    scale: NDArray[np.float32]
    """(C,), 1 / standard deviation, on the scale 0..255."""
    channels_last: bool
    """Whether images are (B, H, W, C) rather than (B, C, H, W)."""

    @classmethod
    def of(cls, transform: Transform, channels_last: bool) -> Normalize:
        """Return the normalisation of a loader's transform."""
        mean, std = (255 * np.array(values, dtype=np.float64) for values in (transform.mean, transform.std))
        return cls(mean.astype(np.float32), (1 / std).astype(np.float32), channels_last)

    def shape(self, rows: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch."""
        channels = len(self.mean)
        return (rows, height, width, channels) if self.channels_last else (rows, channels, height, width)

    def layout(self, shape: Sequence[int]) -> Layout:
        """Return the layout of the images in a batch of `shape`."""
        return Layout.of(shape[1:], axes=(0, 1) if self.channels_last else (1, 2))

    def channels_first(self, images: Tensor) -> Tensor:
        """Return a view of a batch as (B, C, H, W); its memory format does not change."""
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def per_plane(self, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and scale, each (planes, length); those of element i of a plane are at i % length.

        There are C planes of one channel each, or, if channels_last, one in which channels alternate: `length` must then be a
        multiple of C.
        """
        if self.channels_last:
            turns = length // len(self.mean)
            return np.tile(self.mean, turns)[None], np.tile(self.scale, turns)[None]
        return np.repeat(self.mean[:, None], length, axis=1), np.repeat(self.scale[:, None], length, axis=1)
