"""Mixup: all pixels of a member have the same weight.

    x_k = lam_k * x + (1 - lam_k) * x'

Source: Zhang et al. 2018, arXiv 1710.09412; K members per pair: Shen et al. 2024, arXiv 2406.01417.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing.method import Field, Members, Size, WithAlpha


@dataclass(frozen=True)
class Mixup(WithAlpha):
    """Mixup: weight field w_k = lam_k for every pixel."""

    field: ClassVar[Field] = Field.CONSTANT
    uniforms: ClassVar[int] = 0

    def draw(self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size) -> Members:
        """See `Method.draw`."""
        return Members(lam)
