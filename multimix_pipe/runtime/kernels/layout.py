"""The axes of an image that boxes lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from multimix_pipe.errors import ConfigError


class Layout(NamedTuple):
    """An image's shape as (planes, height, width, inner): each plane has `inner` elements per pixel.

    (C, H, W) is (C, H, W, 1), and (H, W, C) is (1, H, W, C).
    """

    planes: int
    height: int
    width: int
    inner: int

    @classmethod
    def of(cls, shape: Sequence[int], axes: Sequence[int] | None = None) -> Layout:
        """Return the layout of images of `shape`, without the batch axis, whose boxes lie in `axes`.

        axes: one axis, or two adjacent ones in order; by default the last two, or as many as there are. A box in one axis has
        y0, y1 = 0, 1 and spans x alone. Raises ConfigError for other axes.

        >>> Layout.of((3, 224, 224)), Layout.of((224, 224, 3), axes=(0, 1))
        (Layout(planes=3, height=224, width=224, inner=1), Layout(planes=1, height=224, width=224, inner=3))
        """
        if axes is None:
            axes = range(len(shape))[-2:]
        first, last = (axes[0], axes[-1]) if axes else (0, -1)
        if len(axes) > 2 or (axes and (not 0 <= first <= last < len(shape) or last - first != len(axes) - 1)):
            raise ConfigError(
                f"axes must be one axis of an image, or two adjacent ones in order, in [0, {len(shape)}); found {tuple(axes)}"
            )
        height, width = (1, 1, *shape[first : last + 1])[-2:]
        return cls(math.prod(shape[:first]), height, width, math.prod(shape[last + 1 :]))

    @property
    def plane_size(self) -> int:
        """Number of elements per plane."""
        return self.height * self.width * self.inner
