"""The interface of a mixing method.

Every method is an instance of one form. Member k of a pair (x, y), (x', y') is

    x_k = w_k * x + (1 - w_k) * z_k        lam_k = mean(w_k)        y_k = lam_k * y + (1 - lam_k) * y'

with a weight w_k per pixel and an image z_k made from x'. A method chooses w_k in NumPy, before anything is decoded. The blends
(`runtime/kernels/`, `dali/stage.py`) can apply each kind of weight field and do not know which method it came from.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""Height and width, in pixels."""


class Field(IntEnum):
    """The kind of a member's weight field w_k. z_k is x' for both kinds."""

    CONSTANT = 0
    """w_k = lam_k everywhere."""
    BOX = 1
    """w_k = 0 inside the member's box, which shows x', and 1 outside it."""


class Method(Protocol):
    """A way to mix two images. `Mixup` is the simplest one.

    To add a method, write a class with these three members and register an instance by name, `METHODS["split"] = Split()`;
    `MultiMix(method="split")` then works in every backend. A method is stateless: all its randomness arrives as arguments.
    """

    field: ClassVar[Field]
    """The kind of weight field that `draw` describes."""
    uniforms: ClassVar[int]
    """How many uniform numbers a pair needs besides its K weights."""

    def draw(
        self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Turn random numbers into the members of n pairs.

        Args:
            u: (n, uniforms) float64, uniform in (0, 1).
            lam: (n, K) float32 weights from Beta(alpha, alpha), non-increasing along k; all 1 for a pair that is not mixed.
            size: height and width of the images, in pixels.

        Returns:
            A pair (lam, box). lam (n, K) float32 holds the weights in effect, the mean of each member's weight field: still
            non-increasing, and still 1 for a pair that is not mixed. box (n, K, 4) int32 holds y0, x0, y1, x1, half-open and
            within `size`; a member without a box has an empty one (y0 = y1 or x0 = x1).
        """
        ...


def no_box(lam: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return empty boxes, (n, K, 4), for members with weights `lam` (n, K)."""
    return np.zeros((*lam.shape, 4), dtype=np.int32)
