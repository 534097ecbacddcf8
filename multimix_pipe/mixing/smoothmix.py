"""SmoothMix: the partner shows through a smooth, round hole.

    w = 1 - g(y) * g(x)        g(d) = exp(-(d - centre)**2 / (2 * sigma**2))        sigma = side * sqrt((1 - lam) / (2 * pi))

d runs over the centres of the pixels. The integral of 1 - w over the plane is the share 1 - lam of the image, with the weight lam
drawn; what lies outside the image is lost, and the label's weight is the mean of w over the pixels that are there. The K holes of
a pair share one centre, which is uniform over the image, and widen with k.

Source: Lee et al. 2020, "SmoothMix: a simple yet effective data augmentation to train robust classifiers" (CVPR Workshops), who
draw sigma uniformly from [0.25, 0.5] of the side. It follows from the weight here, so that the K members are ordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing.method import Field, Members, Size, WithAlpha

CELLS = 512  # of the table of the bell curve, per standard deviation
REACH = 8  # standard deviations; beyond them the curve is 0
UNIT = 2.0**-24  # factors are multiples of this: exact in float32, and their sum is exact in float64

_BELL = np.append(np.exp(-((np.arange(CELLS * REACH) / CELLS) ** 2) / 2), [0.0, 0.0]).astype(np.float32) / np.float32(
    UNIT
)
_SLOPE = np.append(np.diff(_BELL), np.float32(0))


@dataclass(frozen=True)
class SmoothMix(WithAlpha):
    """SmoothMix: weight field w_k = 1 - g_y * g_x, a Gaussian hole that shows x'."""

    field: ClassVar[Field] = Field.SMOOTH
    uniforms: ClassVar[int] = 2

    def draw(self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size) -> Members:
        """See `Method.draw`."""
        spread = np.sqrt((1 - lam.astype(np.float64)) / (2 * math.pi))
        factors = [_bell(np.arange(side) + 0.5, u[:, axis] * side, spread * side) for axis, side in enumerate(size)]
        height, width = (factor.mean(axis=-1, dtype=np.float64) for factor in factors)
        return Members((1 - height * width).astype(np.float32), factors=np.concatenate(factors, axis=-1))


def _bell(
    place: NDArray[np.floating], centre: NDArray[np.floating], sigma: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Return exp(-(place - centre)**2 / (2 * sigma**2)), (n, K, side), in multiples of UNIT; 0 where sigma is.

    place: (side,). centre: (n,). sigma: (n, K). The curve is interpolated in a table, with operations that IEEE 754 defines
    exactly, so that it is the same on every machine. The error is below 1e-6.
    """
    # the bounds keep 0 / 0 out: a hole of no width has no pixel, wherever its centre is
    distance = np.maximum(np.abs(place - centre[:, None]), 1e-6).astype(np.float32)
    cells = (CELLS / np.maximum(sigma, 1e-12)).astype(np.float32)
    curve: NDArray[np.float32] = (
        distance[:, None] * cells[..., None]
    )  # first the place in the table; in place, as it is large
    np.minimum(curve, np.float32(CELLS * REACH), out=curve)
    cell = curve.astype(np.intp)
    curve -= cell.astype(np.float32)
    curve *= _SLOPE.take(cell)
    curve += _BELL.take(cell)
    np.rint(curve, out=curve)
    curve *= np.float32(UNIT)
    return curve
