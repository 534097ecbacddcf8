"""What a mixing method is: how its members are drawn, and the shape of its weight field.

Every method is an instance of one form. Member k of a pair (x, y), (x', y') is

    x_k = w_k * x + (1 - w_k) * z_k        lam_k = mean(w_k)        y_k = lam_k * y + (1 - lam_k) * y'

with a weight w_k for each pixel and z_k made of x'. A method decides what w_k is, in NumPy, before anything is decoded; the
blends (`runtime/kernels/`, `dali/stage.py`) know how to apply each shape of field, not which method it came from.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""Height and width, in pixels."""


class Field(IntEnum):
    """The shape of a member's weight field w_k; z_k is x' in both."""

    CONSTANT = 0
    """w_k = lam_k everywhere."""
    BOX = 1
    """w_k = 0 inside the member's box, which shows x', and 1 outside."""


class Method(Protocol):
    """One way to mix two images. See `Mixup`."""

    field: ClassVar[Field]
    uniforms: ClassVar[int]
    """Uniform numbers that a pair needs besides its K weights."""

    def draw(
        self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The members of n pairs, from numbers that the plan has drawn.

        Args:
            u: (n, uniforms), uniform in (0, 1).
            lam: (n, K), ordered weights drawn from Beta(alpha, alpha), non-increasing along k; 1 where a pair is not mixed.
            size: height and width of the images.

        Returns:
            lam (n, K) float32: the weights in effect, the mean of each member's field, still non-increasing and still 1
                where a pair is not mixed;
            box (n, K, 4) int32: y0, x0, y1, x1, half-open, within `size`; empty (y0 = y1 or x0 = x1) where there is none.
        """
        ...


def no_box(lam: NDArray[np.float32]) -> NDArray[np.int32]:
    """The boxes (n, K, 4) of members that have none."""
    return np.zeros((*lam.shape, 4), dtype=np.int32)
