"""ResizeMix: a box of each member shows the whole partner, shrunk.

The boxes are those of CutMix. The partner is resized to the box after clipping, bilinearly and with antialiasing, and rounded to
whole pixels (0 to 255) before it is normalised; images of floats are not rounded.

Source: Qin et al. 2020, arXiv 2012.11101, who draw the scale uniformly from [0.1, 0.8]; here it is sqrt(1 - lam).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing.cutmix import centred_boxes, outside
from multimix_pipe.mixing.method import Field, Members, Size, WithAlpha


@dataclass(frozen=True)
class ResizeMix(WithAlpha):
    """ResizeMix: weight field w_k = 0 inside a box and 1 outside; the box shows x' resized to fit."""

    field: ClassVar[Field] = Field.RESIZED
    uniforms: ClassVar[int] = 2

    def draw(self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size) -> Members:
        """See `Method.draw`."""
        box = centred_boxes(u[:, None], lam, size)
        return Members(outside(box, size), box)
