"""The position of a run: which epoch, how much of it was handed out, and where the next iteration starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from multimix_pipe.plan import Schedule


@dataclass(frozen=True)
class Position:
    """The position of a run, the same in every process."""

    epoch: int
    samples: int
    """Positions of the epoch that were handed out, over all processes."""
    steps: int
    """Steps of the epoch that each process has done."""
    order_batch_size: int
    """The batch size that window orders are built for: that of the run's first loader."""


ScheduleFrom = Callable[[int], Schedule]
"""Returns this process's schedule of an epoch from a first position."""


@dataclass
class _Iteration:
    """The epoch that an iterator was last bound to."""

    entry: Position
    schedule: Schedule
    handed: int = 0
    exhausted: bool = False

    @property
    def done(self) -> bool:
        """Whether this process has handed out all of its batches."""
        return self.exhausted or self.handed == len(self.schedule)

    @property
    def position(self) -> Position:
        """The position after the batches handed out; the start of the next epoch once this one is over in all processes."""
        samples = self.schedule.position_after(self.handed)
        if self.exhausted or not len(replace(self.schedule, rank=0, start=samples)):  # rank 0 has the most steps
            return self.following
        return replace(self.entry, samples=samples, steps=self.entry.steps + self.handed)

    @property
    def following(self) -> Position:
        """The start of the next epoch."""
        return replace(self.entry, epoch=self.entry.epoch + 1, samples=0, steps=0)


class Tracker:
    """Tracks the position of a run. An iteration binds to an epoch at its first batch:

    - to that of the last `set_epoch` or `restore`, whichever is later, if nothing was bound since;
    - else to the epoch after the one bound last, however much of that one was handed out.
    """

    def __init__(self, batch_size: int) -> None:
        """Start a run of batches of `batch_size` samples."""
        self._bound: _Iteration | None = None
        self._requested: Position | None = Position(0, 0, 0, batch_size)
        self._restored: Position | None = None
        self._order_batch_size = batch_size

    def set_epoch(self, epoch: int) -> None:
        """Request the start of `epoch`, or the restored position if that lies in it."""
        restored = self._restored
        if restored is not None and restored.epoch == epoch:
            self._requested = restored
        else:
            self._requested = Position(epoch, 0, 0, self._order_batch_size)

    def restore(self, position: Position) -> None:
        """Request `position`, which comes from a saved state."""
        self._requested = self._restored = position
        self._order_batch_size = position.order_batch_size

    def bind(self, schedule: ScheduleFrom) -> tuple[Position, Schedule]:
        """Enter the next epoch, and return where it is entered and this process's schedule from there."""
        entry = self._iteration.following if self._requested is None else self._requested
        self._bound, self._requested = _Iteration(entry, schedule(entry.samples)), None
        return entry, self._bound.schedule

    def count_batch(self) -> None:
        """Count a batch that is handed out."""
        self._iteration.handed += 1

    def finish(self) -> None:
        """Note that the bound epoch was iterated to its end."""
        self._iteration.exhausted = True

    @property
    def done(self) -> bool:
        """Whether the bound epoch has no batch left in this process."""
        return self._iteration.done

    @property
    def position(self) -> Position:
        """The position to save."""
        return self._iteration.position if self._requested is None else self._requested

    def steps(self, schedule: ScheduleFrom) -> int:
        """Return the steps of the position's epoch in this process: those done plus those left."""
        position = self.position
        if self._requested is None and position.epoch == self._iteration.entry.epoch:
            return self._iteration.entry.steps + len(self._iteration.schedule)
        return position.steps + len(schedule(position.samples))

    @property
    def _iteration(self) -> _Iteration:
        assert self._bound is not None, "a position is requested until the first epoch is bound"
        return self._bound
