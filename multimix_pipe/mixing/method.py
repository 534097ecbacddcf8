"""The interface of a mixing method.

Every method is an instance of one form. Member k of a pair (x, y), (x', y') is

    x_k = w_k * x + (1 - w_k) * z_k        lam_k = mean(w_k)        y_k = lam_k * y + (1 - lam_k) * y'

with a weight w_k per pixel and an image z_k made from x'. A method chooses w_k in NumPy, before anything is decoded. The blends
(`runtime/kernels/`, `dali/stage.py`) can apply each kind of weight field and do not know which method it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import check_alpha, make_plain

Size = tuple[int, int]
"""Height and width, in pixels."""


class Field(IntEnum):
    """The kind of a member's weight field w_k. z_k is x', except for RESIZED."""

    CONSTANT = 0
    """w_k = lam_k everywhere."""
    BOX = 1
    """w_k = 0 inside the member's box, which shows x', and 1 outside it."""
    SMOOTH = 2
    """w_k = 1 - g_y * g_x, with a factor g_y for each line and g_x for each column."""
    RESIZED = 3
    """As BOX, but the box shows the whole of x', resized to fit: see `resize`."""


class Members(NamedTuple):
    """What the K members of each of n pairs are made of."""

    lam: NDArray[np.float32]
    """(n, K) the weights in effect: the mean of each member's weight field. Non-increasing along k, and 1 if not mixed."""
    box: NDArray[np.int32] | None = None
    """(n, K, 4) y0, x0, y1, x1, half-open and inside the image, for fields with boxes. An empty box (y0 = y1 or x0 = x1) is
    allowed: the member is then x. None: no boxes."""
    factors: NDArray[np.float32] | None = None
    """(n, K, H + W) for Field.SMOOTH: g_y of the H lines, then g_x of the W columns, in [0, 1]; zeros if not mixed."""

    def each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Members:
        """Return the members with `change` applied to every array."""
        box, factors = (None if part is None else change(part) for part in (self.box, self.factors))
        return Members(change(self.lam), box, factors)


class Method(Protocol):
    """A way to mix two images. `Mixup` is the simplest one.

    To add a method, write a class with these three members and register an instance by name, `METHODS["split"] = Split()`;
    `MultiMix(method="split")` then works in every backend. Options are fields of the class. A method is stateless: all its
    randomness arrives as arguments. If it has an attribute `alpha` that is not None, that replaces MultiMix's.
    """

    field: ClassVar[Field]
    """The kind of weight field that `draw` describes."""

    @property
    def uniforms(self) -> int:
        """How many uniform numbers a pair needs besides its K weights. An attribute `member_uniforms` adds some per member."""
        ...

    def draw(self, u: NDArray[np.float64], lam: NDArray[np.float32], size: Size) -> MembersLike:
        """Turn random numbers into the members of n pairs.

        Args:
            u: (n, uniforms + K * member_uniforms) float64, uniform in (0, 1).
            lam: (n, K) float32 weights from Beta(alpha, alpha), non-increasing along k; all 1 for a pair that is not mixed.
            size: height and width of the images, in pixels.

        Returns:
            `Members`, or a tuple of its fields.
        """
        ...


@dataclass(frozen=True)
class WithAlpha:
    """The option that all built-in methods share."""

    alpha: float | tuple[float, float] | None = None
    """Parameter of the method's Beta distribution, as in `MultiMix`; None: that of `MultiMix`."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_alpha(f"{type(self).__name__}.alpha", self.alpha)
        make_plain(self)


MembersLike = Members | tuple[NDArray[np.float32]] | tuple[NDArray[np.float32], NDArray[np.int32]]
