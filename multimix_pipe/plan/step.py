"""A step's decisions, complete: which samples, which windows, which flips, which partners, which weights.

`Plan.step` is a pure function of (seed, epoch, position); a backend only executes what it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.augment import crop
from multimix_pipe.config import EvalTransform, LastBatch, Shuffle, Transform
from multimix_pipe.mixing import MixPlan, MultiMix
from multimix_pipe.plan import mixing, order
from multimix_pipe.plan.seeding import Stream, draw_words, integers, uniform

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class StepPlan:
    """One process's batch: B rows, positions [start, start + B) of the epoch."""

    epoch: int
    start: int
    """Position of row 0 in the epoch, counted over all processes."""
    sample: NDArray[np.int64]
    """(B,) number of each row's sample in the index."""
    window: NDArray[np.float32]
    """(B, 4) y, x, height, width in pixels of the upright image; whole numbers for training."""
    flip: NDArray[np.bool_]
    """(B,) whether the row is mirrored left to right."""
    attempt: NDArray[np.int32]
    """(B,) how often each row's sample was replaced by another: 0 for the sample that the order has there."""
    mix: MixPlan
    """What is mixed with what; where nothing is mixed, each row with itself at weight 1."""

    @property
    def partner(self) -> NDArray[np.int64]:
        """(B,) row that each row is mixed with."""
        return self.mix.partner

    @property
    def lam(self) -> NDArray[np.float32]:
        """(B, K) weight of the row's own sample, non-increasing along k."""
        return self.mix.lam

    @property
    def method(self) -> NDArray[np.str_]:
        """(B,) name of each pair's mixing method."""
        return self.mix.method

    @property
    def box(self) -> NDArray[np.int32]:
        """(B, K, 4) y0, x0, y1, x1, half-open: what each member takes from the partner; zeros where its field is no box."""
        return self.mix.box

    def __len__(self) -> int:
        return len(self.sample)

    def rows(self, rows: slice) -> StepPlan:
        """Some consecutive rows; `partner` still numbers rows of the whole."""
        return StepPlan(
            epoch=self.epoch,
            start=self.start + rows.start,
            sample=self.sample[rows],
            window=self.window[rows],
            flip=self.flip[rows],
            attempt=self.attempt[rows],
            mix=self.mix.rows(rows),
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples that an epoch shows: columns over the (sub)set, in stored order."""

    number: NDArray[np.int64]
    """(N,) number in the index."""
    shard: NDArray[np.int32]
    width: NDArray[np.int32]
    """(N,) of the upright image: after EXIF where that is honoured."""
    height: NDArray[np.int32]
    weights: NDArray[np.float64] | None = None
    """(N,) to draw with replacement by; None: each sample once an epoch."""

    def __len__(self) -> int:
        return len(self.number)

    @cached_property
    def digest(self) -> str:
        """Hex digest of the choice of samples and of their weights."""
        digest = hashlib.sha256(self.number.tobytes())
        if self.weights is not None:
            digest.update(self.weights.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Plan:
    """All decisions of a run, as functions of (epoch, position)."""

    samples: Samples
    transform: Transform
    mix: MultiMix | None
    shuffle: Shuffle
    seed: int
    order_batch_size: int
    """The batch size that a window order is made for."""

    def ordered_for(self, batch_size: int) -> Plan:
        """This plan with a window order that is made for another batch size, as that of a resumed run."""
        return self if batch_size == self.order_batch_size else replace(self, order_batch_size=batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(N,) which of `samples` each position of an epoch shows."""
        return self._order(epoch)

    @cached_property
    def _order(self) -> Callable[[int], NDArray[np.int64]]:
        return lru_cache(maxsize=2)(self._make_order)  # 10 MB at ImageNet's size: this epoch's and the last one's

    def _make_order(self, epoch: int) -> NDArray[np.int64]:
        samples = self.samples
        if samples.weights is not None:
            return order.weighted_order(samples.weights, self.seed, epoch)
        if self.shuffle == "global":
            return order.global_order(len(samples), self.seed, epoch)
        if self.shuffle == "window":
            return order.window_order(samples.shard, self.order_batch_size, self.seed, epoch)
        return order.stored_order(len(samples))

    def step(self, epoch: int, start: int, stop: int) -> StepPlan:
        """The batch of positions [start, stop); a position beyond the last shows the samples from the first on again."""
        member = self.order(epoch)[np.arange(start, stop) % len(self.samples)]
        window, flip = self._crops(member, epoch, start)
        mix = mixing.draw_mixing(self.mix, self.seed, epoch, start, len(member), self.transform.height_width)
        attempt = np.zeros(len(member), dtype=np.int32)
        return StepPlan(epoch, start, self.samples.number[member], window, flip, attempt, mix)

    def replace_row(self, step: StepPlan, row: int) -> StepPlan:
        """`step` with another sample in `row`, drawn for (position, the row's next attempt); its mixing stays."""
        position, attempt = step.start + row, int(step.attempt[row]) + 1
        word = draw_words(self.seed, Stream.REPLACEMENT, step.epoch, position, 1, 1, attempt=attempt)[:, 0]
        if self.samples.weights is None:
            member = integers(word, len(self.samples))
        else:
            member = order.by_weight(uniform(word), self.samples.weights)
        window, flip = self._crops(member, step.epoch, position, attempt)
        return replace(
            step,
            sample=_with_row(step.sample, row, self.samples.number[member[0]]),
            window=_with_row(step.window, row, window[0]),
            flip=_with_row(step.flip, row, flip[0]),
            attempt=_with_row(step.attempt, row, attempt),
        )

    def _crops(
        self, member: NDArray[np.int64], epoch: int, start: int, attempt: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        # a sample whose header could not be read has size 0: it never reaches a decoder, but its row needs some window
        width = np.maximum(self.samples.width[member], 1).astype(np.int64)
        height = np.maximum(self.samples.height[member], 1).astype(np.int64)
        if isinstance(self.transform, EvalTransform):
            return crop.centre_windows(width, height, self.transform), np.zeros(len(member), dtype=np.bool_)
        words = draw_words(self.seed, Stream.CROP, epoch, start, len(member), crop.UNIFORMS_PER_CROP, attempt=attempt)
        u = uniform(words)
        return crop.random_windows(u, width, height, self.transform), crop.random_flips(u, self.transform.flip)


def _with_row(column: NDArray[Scalar], row: int, value: Any) -> NDArray[Scalar]:
    changed = column.copy()
    changed[row] = value
    return changed


@dataclass(frozen=True)
class Schedule:
    """How the positions of an epoch are dealt to processes: step s of process r is batch s*W + r, counted from `start`."""

    count: int
    """Samples of an epoch, N."""
    batch_size: int
    world_size: int
    rank: int
    last_batch: LastBatch
    start: int = 0
    """First position, counted over all processes: 0, or where an epoch is resumed."""

    def __len__(self) -> int:
        """Steps of this process."""
        left = max(0, self.count - self.start)
        a_round = self.batch_size * self.world_size
        if self.last_batch == "wrap":
            return -(-left // a_round)
        if self.last_batch == "drop":
            return left // a_round
        batches = -(-left // self.batch_size)
        return max(0, -(-(batches - self.rank) // self.world_size))

    def bounds(self, step: int) -> tuple[int, int]:
        """Positions [first, past) of this process's batch of a step."""
        first = self.start + (step * self.world_size + self.rank) * self.batch_size
        past = first + self.batch_size
        return first, min(past, self.count) if self.last_batch == "partial" else past

    def position_after(self, steps: int) -> int:
        """The first position that no process has been handed after so many steps."""
        return self.start + steps * self.world_size * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (self.bounds(step) for step in range(len(self)))
