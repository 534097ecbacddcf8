"""The plan of a step: its samples, crop windows, flips, partners and weights.

`Plan.step` is a pure function of (seed, epoch, position); a backend only executes its result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.augment import crop
from multimix_pipe.config import EvalTransform, LastBatch, Shuffle, Transform
from multimix_pipe.mixing import MixPlan, MixSchedule, MultiMix
from multimix_pipe.plan import mixing, order
from multimix_pipe.plan.order import Order
from multimix_pipe.plan.seeding import Stream, draw_words, integers, uniform

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class StepPlan:
    """Every decision for one batch of one process: B rows at positions [start, start + B) of the epoch."""

    epoch: int
    """The epoch, counted from 0."""
    start: int
    """Position of row 0 in the epoch, counted over all processes."""
    sample: NDArray[np.int64]
    """(B,) `sample_id` of each row: the position of its sample in the shards' `Index`."""
    window: NDArray[np.float32]
    """(B, 4) y, x, height, width of the crop in pixels of the image, after its EXIF orientation is applied if `exif=True`;
    whole numbers for training. With crops="each" (B, K, 4), a crop for each member."""
    flip: NDArray[np.bool_]
    """(B,) whether the crop is mirrored left to right; (B, K) with crops="each"."""
    attempt: NDArray[np.int32]
    """(B,) how often the row's sample was replaced because it was bad; 0 for the sample that the order chose."""
    mix: MixPlan
    """How the rows are mixed. Without mixing, each row is its own partner with weight 1."""
    step_start: int
    """Position of the first row that any process has in this step: the same number in every process."""

    @property
    def partner(self) -> NDArray[np.int64]:
        """(B,) int64 row that each row is mixed with; (B, K), one for each member, with partners="each"."""
        return self.mix.partner

    @property
    def lam(self) -> NDArray[np.float32]:
        """(B, K) float32 weight of the row's own sample, non-increasing along k."""
        return self.mix.lam

    @property
    def method(self) -> NDArray[np.str_]:
        """(B,) name of each pair's mixing method."""
        return self.mix.method

    @property
    def box(self) -> NDArray[np.int32]:
        """(B, K, 4) int32 y0, x0, y1, x1, half-open: the region that each member takes from the partner; zeros if none."""
        return self.mix.box

    @property
    def crops_each(self) -> bool:
        """Whether each member has its own crop of both images. Not part of the public API."""
        return self.window.ndim == 3

    @property
    def crops(self) -> int:
        """Number of crops of each image: K with crops="each", else 1. Not part of the public API."""
        return self.window.shape[1] if self.crops_each else 1

    def __len__(self) -> int:
        return len(self.sample)

    def __repr__(self) -> str:
        return f"StepPlan(epoch {self.epoch}, positions {self.start} to {self.start + len(self) - 1}, {self.mix!r})"

    def rows(self, rows: slice) -> StepPlan:
        """Return the plan of some consecutive rows. Its `partner` still refers to rows of the whole batch."""
        return StepPlan(
            epoch=self.epoch,
            start=self.start + rows.start,
            sample=self.sample[rows],
            window=self.window[rows],
            flip=self.flip[rows],
            attempt=self.attempt[rows],
            mix=self.mix.rows(rows),
            step_start=self.step_start,
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """The N samples of an epoch, as columns in stored order: the whole data set, or the subset that the user chose.

    A sample's position in these columns is its `place`; its position in the shards' `Index` is its `sample_id`.
    """

    sample_id: NDArray[np.int64]
    """(N,) position of each sample in the index."""
    shard: NDArray[np.int32]
    """(N,) shard of each sample, as a position in `Index.shards`."""
    width: NDArray[np.int32]
    """(N,) width in pixels, after the EXIF orientation is applied if `exif=True`; 0 if the header cannot be read."""
    height: NDArray[np.int32]
    """(N,) height in pixels, likewise."""
    weights: NDArray[np.float64] | None = None
    """(N,) relative probabilities for drawing with replacement. None: each sample once per epoch."""

    def __len__(self) -> int:
        return len(self.sample_id)

    @cached_property
    def cumulative(self) -> NDArray[np.float64]:
        """(N,) cumulative weights."""
        assert self.weights is not None, "samples without weights are not drawn by weight"
        return np.cumsum(self.weights)

    @cached_property
    def digest(self) -> str:
        """Hex digest of the chosen samples and their weights."""
        digest = hashlib.sha256(self.sample_id.tobytes())
        if self.weights is not None:
            digest.update(self.weights.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Plan:
    """Every decision of a run, as functions of (epoch, position)."""

    samples: Samples
    transform: Transform
    mix: MultiMix | MixSchedule | None
    shuffle: Shuffle
    seed: int
    order_batch_size: int
    """The batch size that the window order is built for; a resumed run keeps the one that its epoch started with."""

    def ordered_for(self, batch_size: int) -> Plan:
        """Return this plan with its window order built for `batch_size`."""
        return self if batch_size == self.order_batch_size else replace(self, order_batch_size=batch_size)

    def order(self, epoch: int) -> Order:
        """Return the order of an epoch, which maps positions to places in `samples`."""
        return self._order(epoch)

    @cached_property
    def _order(self) -> Callable[[int], Order]:
        return lru_cache(maxsize=2)(self._make_order)  # this epoch and the previous one; a window order has N numbers

    def _make_order(self, epoch: int) -> Order:
        samples = self.samples
        if samples.weights is not None:
            return order.weighted_order(samples.cumulative, self.seed, epoch)
        if self.shuffle == "global":
            return order.global_order(len(samples), self.seed, epoch)
        if self.shuffle == "window":
            return order.array_order(order.window_order(samples.shard, self.order_batch_size, self.seed, epoch))
        return order.stored_order

    def step(self, epoch: int, start: int, stop: int, step_start: int | None = None) -> StepPlan:
        """Return the plan of positions [start, stop). Positions from N on wrap around to the first samples, with new draws.

        `step_start` is the first position of all processes' rows in this step. Default: `start`.
        """
        place = self.order(epoch)(np.arange(start, stop) % len(self.samples))
        settings = None if self.mix is None else self.mix.at(epoch)
        members = settings.k if settings is not None and settings.crops == "each" else None
        window, flip = self._crops(place, epoch, start, members=members)
        mix = mixing.draw_mixing(settings, self.seed, epoch, start, len(place), self.transform.height_width)
        attempt = np.zeros(len(place), dtype=np.int32)
        step_start = start if step_start is None else step_start
        return StepPlan(epoch, start, self.samples.sample_id[place], window, flip, attempt, mix, step_start)

    def replace_row(self, step: StepPlan, row: int) -> StepPlan:
        """Return a plan in which another sample, keyed by (position, attempt), takes `row`. The mixing does not change."""
        position, attempt = step.start + row, int(step.attempt[row]) + 1
        word = draw_words(self.seed, Stream.REPLACEMENT, step.epoch, position, 1, 1, attempt=attempt)[:, 0]
        if self.samples.weights is None:
            place = integers(word, len(self.samples))
        else:
            place = order.by_weight(uniform(word), self.samples.cumulative)
        window, flip = self._crops(place, step.epoch, position, attempt, step.crops if step.crops_each else None)
        return replace(
            step,
            sample=_with_row(step.sample, row, self.samples.sample_id[place[0]]),
            window=_with_row(step.window, row, window[0]),
            flip=_with_row(step.flip, row, flip[0]),
            attempt=_with_row(step.attempt, row, attempt),
        )

    def _crops(
        self, place: NDArray[np.int64], epoch: int, start: int, attempt: int = 0, members: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return windows (B, 4) and flips (B,), or (B, K, 4) and (B, K) for K members; member 0 has those of the former."""
        # a sample with an unreadable header has size 0: it never reaches a decoder, but its row still needs a valid window
        width = np.maximum(self.samples.width[place], 1).astype(np.int64)
        height = np.maximum(self.samples.height[place], 1).astype(np.int64)
        if isinstance(self.transform, EvalTransform):
            return crop.centre_windows(width, height, self.transform), np.zeros(len(place), dtype=np.bool_)
        draw = partial(
            draw_words, self.seed, Stream.CROP, epoch, start, len(place), crop.UNIFORMS_PER_CROP, attempt=attempt
        )
        if members is None:
            u = uniform(draw())
        else:
            u = uniform(np.stack([draw(member=k) for k in range(members)], axis=1).reshape(-1, crop.UNIFORMS_PER_CROP))
            width, height = np.repeat(width, members), np.repeat(height, members)
        window, flip = crop.random_windows(u, width, height, self.transform), crop.random_flips(u, self.transform.flip)
        return (window, flip) if members is None else (window.reshape(-1, members, 4), flip.reshape(-1, members))


def _with_row(column: NDArray[Scalar], row: int, value: Any) -> NDArray[Scalar]:
    changed = column.copy()
    changed[row] = value
    return changed


@dataclass(frozen=True)
class Schedule:
    """How an epoch is divided among W processes: step s of process r is batch s*W + r, counted from `start`.

    Iterating yields the `bounds` of each step of this process; `len` is their number.
    """

    count: int
    """N, the samples of an epoch."""
    batch_size: int
    """Samples per process and step."""
    world_size: int
    """W, the number of processes."""
    rank: int
    """r, this process, in [0, W)."""
    last_batch: LastBatch
    """What happens at the end of the epoch; see `open_loader`."""
    start: int = 0
    """First position, counted over all processes: 0, or the position that the epoch resumes from."""

    def __len__(self) -> int:
        remaining = max(0, self.count - self.start)
        positions_per_step = self.batch_size * self.world_size
        if self.last_batch == "wrap":
            return -(-remaining // positions_per_step)
        if self.last_batch == "drop":
            return remaining // positions_per_step
        batches = -(-remaining // self.batch_size)
        return max(0, -(-(batches - self.rank) // self.world_size))

    def bounds(self, step: int) -> tuple[int, int]:
        """Return the positions [first, stop) of this process's batch at `step`."""
        first = self.start + (step * self.world_size + self.rank) * self.batch_size
        stop = first + self.batch_size
        return first, min(stop, self.count) if self.last_batch == "partial" else stop

    def position_after(self, steps: int) -> int:
        """Return the position that the epoch resumes from after `steps` steps of every process."""
        return self.start + steps * self.world_size * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (self.bounds(step) for step in range(len(self)))
