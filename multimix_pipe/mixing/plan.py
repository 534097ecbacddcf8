"""`MixPlan`, the mixing of one batch as a value that every blend executes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing.method import Field, Size
from multimix_pipe.mixing.methods import METHODS


@dataclass(frozen=True, eq=False)
class MixPlan:
    """How a batch of B pairs with K members each is mixed. Nothing is random any more: executing a plan is deterministic.

    Member k of pair b is w_k * x + (1 - w_k) * z_k, with x = images[b] and z_k = images[partner[b]], or images[partner[b, k]].
    The weight field w_k is the constant lam[b, k] for mixup; 0 inside box[b, k] and 1 outside for CutMix and ResizeMix, for
    which z_k is the partner resized to the box; and 1 - g_y * g_x, with the factors of `factors[b, k]`, for SmoothMix. The
    target is lam[b, k] * y + (1 - lam[b, k]) * y'.

    `MultiMix` settings produce plans with non-increasing `lam`; `apply_mix` executes any plan. Raises ConfigError if the shapes
    do not agree or a method is unknown.

    >>> MixPlan(partner=np.array([1, 0]), lam=np.array([[1.0, 0.25], [0.5, 0.5]], dtype=np.float32))
    MixPlan(2 pairs, K=2, mixup)
    """

    partner: NDArray[np.int64]
    """(B,) int64 row that each row is mixed with, in [0, B); or (B, K), one for each member."""
    lam: NDArray[np.float32]
    """(B, K) float32 weight of the row's own sample, in [0, 1]. This is the weight in effect, the mean of w_k after boxes are
    clipped and rounded, not the number that was drawn."""
    method: NDArray[np.str_] = None  # type: ignore[assignment]
    """(B,) name of each pair's method. Default: "mixup" for all."""
    box: NDArray[np.int32] = None  # type: ignore[assignment]
    """(B, K, 4) int32 y0, x0, y1, x1, half-open: the region taken from the partner. Default: zeros, no region."""
    factors: NDArray[np.float32] | None = None
    """(B, K, H + W) float32, the factors of smooth fields for images of H lines and W columns: g_y, then g_x; zeros for pairs
    with other fields. None: no pair's field is smooth."""
    field: NDArray[np.uint8] = dataclasses.field(init=False)
    """(B,) the kind of each pair's weight field, a number of `Field`. Follows from `method`."""

    def __post_init__(self) -> None:
        if self.lam.ndim != 2:
            raise ConfigError(f"a MixPlan needs lam (B, K); found shape {self.lam.shape}")
        pairs, has_boxes = len(self.partner), self.box is not None
        method = np.full(pairs, "mixup") if self.method is None else np.asarray(self.method)
        object.__setattr__(self, "method", method)
        if self.box is None:
            object.__setattr__(self, "box", np.zeros((*self.lam.shape, 4), dtype=np.int32))
        shapes = self.partner.shape, self.lam.shape, self.method.shape, self.box.shape
        expected = (pairs, self.k), (pairs,), (pairs, self.k, 4)
        if shapes[0] not in ((pairs,), (pairs, self.k)) or shapes[1:] != expected:
            raise ConfigError(
                "a MixPlan needs partner (B,) or (B, K), lam (B, K), method (B,) and box (B, K, 4); found shapes "
                + ", ".join(map(str, shapes))
            )
        names, place = np.unique(self.method, return_inverse=True)
        unknown = [name for name in names.tolist() if name not in METHODS]
        if unknown:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; found {', '.join(unknown)}")
        object.__setattr__(self, "field", np.array([METHODS[n].field for n in names.tolist()], dtype=np.uint8)[place])
        if not has_boxes and np.isin(self.field, (Field.BOX, Field.RESIZED)).any():
            raise ConfigError(f"a MixPlan with {', '.join(names)} needs box (B, K, 4); found None")
        smooth = bool((self.field == Field.SMOOTH).any())
        if smooth and (self.factors is None or self.factors.ndim != 3 or self.factors.shape[:2] != self.lam.shape):
            raise ConfigError(
                f"a MixPlan with smoothmix needs factors (B, K, H + W); found {getattr(self.factors, 'shape', None)}"
            )
        if self.factors is not None and not smooth:
            object.__setattr__(self, "factors", None)

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

    @property
    def is_identity(self) -> bool:
        """Whether each row comes out once and unmixed, as in an epoch without mixing."""
        return self.k == 1 and bool((self.lam == 1).all())

    @property
    def member_partner(self) -> NDArray[np.int64]:
        """(B, K) int64 `partner` of each member, a read-only view if a pair's members share it."""
        return self.partner if self.partner.ndim == 2 else np.broadcast_to(self.partner[:, None], self.lam.shape)

    @property
    def constant(self) -> NDArray[np.float32]:
        """(B, K) float32 `lam` of the pairs whose field is constant, and 1 for the others.

        Each weight field is the product of this, 1 outside `box` and 0 inside, and 1 - g_y * g_x: two of the three are 1.
        """
        return np.where(self.field[:, None] == Field.CONSTANT, self.lam, np.float32(1))

    def weights(self, size: Size) -> NDArray[np.float32]:
        """Return the weight fields w_k for images of `size` (H, W): float32 (B, K, H, W).

        Slow and clear: every blend is tested against it. Raises ConfigError if the plan was drawn for another size.
        """
        self.check_size(size)
        height = size[0]
        field = np.empty((*self.lam.shape, *size), dtype=np.float32)
        for b, k in np.ndindex(*self.lam.shape):
            if self.field[b] == Field.CONSTANT:
                field[b, k] = self.lam[b, k]
            elif self.field[b] == Field.SMOOTH:
                assert self.factors is not None
                field[b, k] = 1 - self.factors[b, k, :height, None] * self.factors[b, k, height:]
            else:
                y0, x0, y1, x1 = self.box[b, k]
                field[b, k] = 1
                field[b, k, y0:y1, x0:x1] = 0
        return field

    def check_size(self, size: Size) -> None:
        """Raise ConfigError unless the plan fits images of `size` (H, W): boxes lie inside, cover 1 - lam; H + W factors."""
        if self.factors is not None and self.factors.shape[2] != sum(size):
            raise ConfigError(
                f"the plan's factors must be for images of {size[0]}x{size[1]}, {sum(size)} for each member; found "
                f"{self.factors.shape[2]}: the plan was drawn for another size"
            )
        low, high = self.box[..., :2], self.box[..., 2:]
        if not ((low >= 0) & (low <= high) & (high <= np.array(size))).all():
            worst = self.box.reshape(-1, 4)[((low < 0) | (low > high) | (high > np.array(size))).any(-1).argmax()]
            raise ConfigError(
                f"the plan's boxes (y0, x0, y1, x1) must lie inside images of {size[0]}x{size[1]}; found "
                f"{tuple(worst.tolist())}: the plan was drawn for another size"
            )

        boxed = np.isin(self.field, (Field.BOX, Field.RESIZED))
        area = np.prod((high - low)[boxed], axis=-1, dtype=np.float64) / (size[0] * size[1])
        wrong = np.abs(self.lam[boxed] - (1 - area)) > 1e-3
        if wrong.any():
            lam, share = float(self.lam[boxed][wrong][0]), float(1 - area[wrong][0])
            raise ConfigError(
                f"lam must be the share of x in images of {size[0]}x{size[1]}, {share:.4f} outside the box; found {lam:.4f}: "
                "the plan was drawn for another size"
            )

    def rows(self, rows: slice) -> MixPlan:
        """Return the plan of some consecutive pairs. Its `partner` still refers to rows of the whole batch."""
        factors = None if self.factors is None else self.factors[rows]
        return MixPlan(self.partner[rows], self.lam[rows], self.method[rows], self.box[rows], factors)

    def of_crops(self) -> MixPlan:
        """Return this plan for B*K images, of which each member of a pair has its own, as with `MultiMix(crops="each")`.

        It holds B*K pairs with one member each: image b*K + k is mixed with image partner*K + k.

        >>> MixPlan(partner=np.array([1, 0]), lam=np.array([[1.0, 0.25], [0.5, 0.5]], dtype=np.float32)).of_crops().partner
        array([2, 3, 0, 1])
        """
        partner = self.member_partner * self.k + np.arange(self.k)
        factors = None if self.factors is None else self.factors.reshape(-1, 1, self.factors.shape[2])
        method, box = np.repeat(self.method, self.k), self.box.reshape(-1, 1, 4)
        return MixPlan(partner.reshape(-1), self.lam.reshape(-1, 1), method, box, factors)

    def __len__(self) -> int:
        return len(self.partner)

    def __repr__(self) -> str:
        return f"MixPlan({len(self)} pairs, K={self.k}, {'+'.join(np.unique(self.method).tolist())})"
