"""What a contender is asked to do: the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ALPHA = 1.0
"""Both parameters of the weights' Beta distribution, for every contender."""
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Bounds of the random crop's area and aspect ratio, for every contender; a flip has probability 1/2."""


@dataclass(frozen=True)
class Setting:
    """The work: decode, RandomResizedCrop(SCALE, RATIO), flip, resize, normalise with ImageNet's mean and std, mix.

    A contender hands out `(images, targets)`: with `k` (B*k, 3, size, size) mixed rows and dense float32 targets
    (B*k, num_classes); with `k=None` (B, 3, size, size) and int64 class ids (B,).
    """

    shards: tuple[str, ...]
    """Paths of tars, at least one; their order is free, and so is that of the samples."""
    num_classes: int
    batch_size: int
    """B, images decoded per batch."""
    k: int | None
    """Weights of each pair; None: no mixing."""
    threads: int
    """Threads or worker processes that decode."""
    size: int = 224
    antialias: bool = True
    """Whether the resize is bilinear with antialias, as Pillow's and torchvision's, or plain linear interpolation."""
    device: str = "cpu"
    """Where the batches must be: "cpu", "cuda" or "cuda:N"."""
    dtype: str = "float32"
    """Type of the images."""
    label: str = "cls"
    """Extension of the member that holds the class id, in ASCII; or "json:KEY"."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {**asdict(self), "shards": list(self.shards)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Setting:
        """The inverse of `to_json`."""
        return cls(**{**fields, "shards": tuple(fields["shards"])})
