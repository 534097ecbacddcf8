"""What happens when a sample cannot be used: an error that names it, or a replacement that is counted.

An executor begins each step with a `Replacements`, asks it for usable bytes, and hands out its `step`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import OnBadSample
from multimix_pipe.errors import BadSampleError, ShardError
from multimix_pipe.plan import Plan, StepPlan
from multimix_pipe.shards.index import PROBLEMS, Index
from multimix_pipe.shards.reader import ShardReader

logger = logging.getLogger("multimix_pipe")

Encoded = NDArray[np.uint8]
Used = TypeVar("Used")

MAX_ATTEMPTS = 100
"""Replacements tried for one position before the run ends: that many bad ones in a row mean a broken data set."""


@dataclass(frozen=True)
class Unusable:
    """A sample that cannot be used."""

    reason: str
    """Why, without the sample's name."""


def read_sample(
    reader: ShardReader, index: Index, sample: int, memory: Encoded | None = None, *, raises: bool
) -> Encoded | Unusable:
    """The encoded bytes of a sample, in `memory` if that is given (of their size), or why it cannot be used.

    A shard that no longer holds what was indexed raises ShardError if `raises`; else that is a reason too.
    """
    if code := int(index.problem[sample]):
        return Unusable(PROBLEMS[code])
    try:
        return reader.read(sample, memory)
    except ShardError as error:
        if raises:
            raise
        return Unusable(str(error).removeprefix(f"{index.name(sample)}: "))


class BadSamples:
    """The policy of `on_bad_sample`, and the record of what it met."""

    def __init__(
        self, index: Index, numbers: NDArray[np.int64], policy: OnBadSample, max_bad: int | float | None
    ) -> None:
        """`numbers` are the samples used. Raises BadSampleError where indexing found more bad ones than are allowed."""
        self._index = index
        self._policy = policy
        self._most = math.floor(max_bad * len(numbers) + 1e-6) if isinstance(max_bad, float) else max_bad
        self._allowed = f"max_bad={max_bad}" + (f" ({self._most} samples)" if isinstance(max_bad, float) else "")
        self._reasons: dict[int, str] = {}
        known = np.count_nonzero(index.problem[numbers]) + len(index.damage)
        if policy == "replace" and self._most is not None and known > self._most:
            raise BadSampleError(
                f"{known} bad samples and damaged shards are known already, {self._allowed} allowed; "
                "`multimix-pipe verify` names all"
            )

    @property
    def raises(self) -> bool:
        """Whether a bad sample is an error."""
        return self._policy == "raise"

    @property
    def reasons(self) -> dict[str, str]:
        """The bad samples replaced so far: `shard.tar : key` -> what is wrong."""
        return {self._index.full_key(sample): reason for sample, reason in self._reasons.copy().items()}

    def check_replaceable(self, sample: int, reason: str, attempt: int) -> None:
        """Raise BadSampleError under "raise", and where a position has had MAX_ATTEMPTS bad samples in a row."""
        name = self._index.name(sample)
        if self.raises:
            raise BadSampleError(
                f"{name}: {reason}. Leave it out with exclude=[{self._index.full_key(sample)!r}], or train on others in the "
                'place of bad samples with on_bad_sample="replace"'
            )
        if attempt + 1 >= MAX_ATTEMPTS:
            raise BadSampleError(f"{MAX_ATTEMPTS} samples in a row are bad; the last one: {name}: {reason}")

    def record(self, sample: int, reason: str) -> None:
        """Count a sample that was replaced. Raises BadSampleError past `max_bad` different ones.

        Called when its batch is handed out: what runs ahead in threads must not decide at which step a run ends.
        """
        name = self._index.name(sample)
        if sample not in self._reasons:
            self._reasons[sample] = reason
            logger.warning("bad sample replaced: %s: %s", name, reason)
        if self._most is not None and len(self._reasons) > self._most:
            raise BadSampleError(
                f"{len(self._reasons)} bad samples met, {self._allowed} allowed; the last one: {name}: {reason}"
            )


class Replacements:
    """One step on its way through an executor, in which bad samples give way to others. Each row is used by one thread."""

    def __init__(self, plan: Plan, index: Index, reader: ShardReader, bad_samples: BadSamples, step: StepPlan) -> None:
        self._plan = plan
        self._index = index
        self._reader = reader
        self._bad_samples = bad_samples
        self._lock = threading.Lock()
        self._met: list[tuple[int, str]] = []
        self.step = step
        """The step's plan as it now stands: a replaced row makes it a new plan."""

    def read(self, row: int, memory: Encoded | None = None) -> Encoded | Unusable:
        """The encoded bytes of a row's sample, in `memory` if that is given."""
        sample = int(self.step.sample[row])
        return read_sample(self._reader, self._index, sample, memory, raises=self._bad_samples.raises)

    def use(self, row: int, encoded: Encoded | Unusable, use: Callable[[int, Encoded], Used | Unusable]) -> Used:
        """What `use(row, encoded)` makes of a row's bytes, or of those of the first replacement that it can use.

        `use` finds the row's sample in `step`. Raises BadSampleError where bad samples are not to be replaced.
        """
        while True:
            result = encoded if isinstance(encoded, Unusable) else use(row, encoded)
            if not isinstance(result, Unusable):
                return result
            self.replace(row, result)
            encoded = self.read(row)

    def replace(self, row: int, bad: Unusable) -> None:
        """Draw another sample for a row. Raises BadSampleError where that is not allowed, or has been done too often."""
        sample = int(self.step.sample[row])
        self._bad_samples.check_replaceable(sample, bad.reason, int(self.step.attempt[row]))
        with self._lock:
            self._met.append((sample, bad.reason))
            self.step = self._plan.replace_row(self.step, row)

    def record(self) -> None:
        """Count the bad samples, as the step is handed out. Raises BadSampleError where they are too many."""
        for sample, reason in sorted(self._met):
            self._bad_samples.record(sample, reason)
