"""CutMix: a box of each member shows the partner.

With the weight lam drawn, the box has sides floor(side * sqrt(1 - lam)) about a centre that is uniform over the pixels, and is
clipped to the image; the label's weight is the share of the image that is left outside the box.

Source: Yun et al. 2019, arXiv 1905.04899. The K boxes of a pair share one centre, so they nest and stay ordered when clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import check_choice
from multimix_pipe.mixing.method import Field, Members, Size, WithAlpha

Boxes = Literal["nested", "independent"]


@dataclass(frozen=True)
class CutMix(WithAlpha):
    """CutMix: weight field w_k = 0 inside a box and 1 outside; the box shows x'."""

    field: ClassVar[Field] = Field.BOX

    boxes: Boxes = "nested"
    """"nested": the K boxes of a pair share one centre, so each contains the previous one. "independent": each box has a
    centre of its own; they are sorted by their area after clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("CutMix.boxes", self.boxes, get_args(Boxes))

    @property
    def uniforms(self) -> int:
        """See `Method.uniforms`."""
        return 2 if self.boxes == "nested" else 0

    @property
    def member_uniforms(self) -> int:
        """See `Method.uniforms`."""
        return 0 if self.boxes == "nested" else 2

    def draw(self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size) -> Members:
        """See `Method.draw`."""
        box = centred_boxes(u.reshape(len(u), u.shape[1] // 2, 2), lam, size)
        lam = outside(box, size)
        if self.boxes == "independent":
            order = np.argsort(-lam, axis=1, kind="stable")
            lam, box = np.take_along_axis(lam, order, axis=1), np.take_along_axis(box, order[..., None], axis=1)
        return Members(lam, box)


def centred_boxes(u: NDArray[np.float64], lam: NDArray[np.float32], size: Size) -> NDArray[np.int32]:
    """Return a box for each weight, (n, K, 4): sides floor(side * sqrt(1 - lam)), clipped to the image; zeros if it is empty.

    u: (n, 1 or K, 2), the place of the centre as a share of height and width.
    """
    sides = np.array(size)
    centre = np.floor(u * sides).astype(np.int32)
    extent = np.floor(sides * np.sqrt(1 - lam.astype(np.float64))[..., None]).astype(np.int32)
    start = centre - extent // 2
    box = np.concatenate([np.maximum(start, 0), np.minimum(start + extent, sides)], axis=-1, dtype=np.int32)
    box[(extent == 0).any(axis=-1)] = 0
    return box


def outside(box: NDArray[np.int32], size: Size) -> NDArray[np.float32]:
    """Return the share of an image that is outside each box, float32 (n, K)."""
    area = (box[..., 2] - box[..., 0]).astype(np.int64) * (box[..., 3] - box[..., 1])
    return (1 - area / (size[0] * size[1])).astype(np.float32)
