"""The work that a contender does, the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass

ALPHA = 1.0
"""Both parameters of the weights' Beta distribution, for every contender."""
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Bounds of the random crop's area and aspect ratio, for every contender; a flip has probability 1/2."""


@dataclass(frozen=True)
class Setting:
    """The work: decode, RandomResizedCrop(SCALE, RATIO), flip, resize, normalise with ImageNet's mean and std, mix.

    A contender yields `(images, targets)`. With `k`, images are (B*k, 3, size, size) mixed rows and targets are dense float32
    (B*k, num_classes); with `k=None`, images are (B, 3, size, size) and targets are int64 class ids (B,).
    """

    shards: list[str]
    """Paths of at least one tar, with class ids in `.cls`. Contenders may read shards and samples in any order."""
    num_classes: int
    batch_size: int
    """B, the number of images decoded per batch."""
    k: int | None
    """Number of weights per pair; None: no mixing."""
    threads: int
    """Number of decoding threads or worker processes."""
    size: int = 224
    antialias: bool = True
    """Whether to resize with antialiasing, as Pillow and torchvision do, or by plain bilinear interpolation."""
    device: str = "cpu"
    """Device of the batches: "cpu", "cuda" or "cuda:N"."""
    dtype: str = "float32"
    """Type of the images."""
