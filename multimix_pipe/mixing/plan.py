"""`MixPlan`, the mixing of one batch as a value that every blend executes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing.method import Field, Size
from multimix_pipe.mixing.methods import METHODS


@dataclass(frozen=True, eq=False)
class MixPlan:
    """How a batch of B pairs with K members each is mixed. Nothing is random any more: executing a plan is deterministic.

    Member k of pair b is w_k * x + (1 - w_k) * x', with x = images[b], x' = images[partner[b]] and a weight field w_k: the
    constant lam[b, k] for mixup; for methods with boxes, 0 inside box[b, k] and 1 outside. Its target is
    lam[b, k] * y + (1 - lam[b, k]) * y'.

    `MultiMix` settings produce plans with non-increasing `lam`; `apply_mix` executes any plan. Raises ConfigError if the shapes
    do not agree or a method is unknown.

    >>> MixPlan(partner=np.array([1, 0]), lam=np.array([[1.0, 0.25], [0.5, 0.5]], dtype=np.float32))
    MixPlan(2 pairs, K=2, mixup)
    """

    partner: NDArray[np.int64]
    """(B,) int64 row that each row is mixed with, in [0, B)."""
    lam: NDArray[np.float32]
    """(B, K) float32 weight of the row's own sample, in [0, 1]. This is the weight in effect, the mean of w_k after boxes are
    clipped and rounded, not the number that was drawn."""
    method: NDArray[np.str_] = None  # type: ignore[assignment]
    """(B,) name of each pair's method. Default: "mixup" for all."""
    box: NDArray[np.int32] = None  # type: ignore[assignment]
    """(B, K, 4) int32 y0, x0, y1, x1, half-open: the region taken from the partner. Default: zeros, no region."""
    boxed: NDArray[np.bool_] = field(init=False)
    """(B,) whether the pair's method mixes by boxes; if not, its weight fields are constant. Follows from `method`."""

    def __post_init__(self) -> None:
        pairs = len(self.partner)
        if self.method is None:
            object.__setattr__(self, "method", np.full(pairs, "mixup"))
        if self.box is None:
            object.__setattr__(self, "box", np.zeros((*self.lam.shape, 4), dtype=np.int32))
        shapes = self.partner.shape, self.lam.shape, self.method.shape, self.box.shape
        if self.lam.ndim != 2 or shapes != ((pairs,), (pairs, self.k), (pairs,), (pairs, self.k, 4)):
            raise ConfigError(
                "a MixPlan needs partner (B,), lam (B, K), method (B,) and box (B, K, 4); found shapes "
                + ", ".join(map(str, shapes))
            )
        names, place = np.unique(self.method, return_inverse=True)
        unknown = [name for name in names.tolist() if name not in METHODS]
        if unknown:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; found {', '.join(unknown)}")
        boxed = np.array([METHODS[name].field is Field.BOX for name in names.tolist()], dtype=np.bool_)[place]
        object.__setattr__(self, "boxed", boxed)

    @classmethod
    def identity(cls, rows: int) -> MixPlan:
        """Return the plan of an unmixed batch: K = 1, and each row is its own partner with weight 1."""
        return cls(np.arange(rows, dtype=np.int64), np.ones((rows, 1), dtype=np.float32))

    @property
    def mix(self) -> MixPlan:
        """This plan itself, so that `batch.plan.mix` is the `MixPlan` of every batch, also of `mix_batch`'s."""
        return self

    @property
    def k(self) -> int:
        """K, the members of each pair."""
        return int(self.lam.shape[1])

    def weights(self, size: Size) -> NDArray[np.float32]:
        """Return the weight fields w_k for images of `size` (H, W): float32 (B, K, H, W).

        Slow and clear: every blend is tested against it.
        """
        height, width = size
        y, x = np.arange(height)[:, None], np.arange(width)
        y0, x0, y1, x1 = np.moveaxis(self.box[..., None, None], 2, 0)
        inside = (y0 <= y) & (y < y1) & (x0 <= x) & (x < x1)
        boxed = self.boxed[:, None, None, None]
        return np.where(boxed, (~inside).astype(np.float32), self.lam[..., None, None])

    def rows(self, rows: slice) -> MixPlan:
        """Return the plan of some consecutive pairs. Its `partner` still refers to rows of the whole batch."""
        return MixPlan(self.partner[rows], self.lam[rows], self.method[rows], self.box[rows])

    def __len__(self) -> int:
        return len(self.partner)

    def __repr__(self) -> str:
        return f"MixPlan({len(self)} pairs, K={self.k}, {'+'.join(np.unique(self.method).tolist())})"
