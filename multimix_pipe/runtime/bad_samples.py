"""Bad samples: an error that names the sample, or a replacement that is counted.

An executor creates a `Replacements` for each step, gets usable bytes from it, and returns its `step` with the batch.
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
from multimix_pipe.shards.index import Index
from multimix_pipe.shards.reader import ShardReader

logger = logging.getLogger("multimix_pipe")

Encoded = NDArray[np.uint8]
Used = TypeVar("Used")

MAX_ATTEMPTS = 100
"""Bad samples in a row at one position that end the run: the data set must be broken."""


@dataclass(frozen=True)
class Unusable:
    """A sample that cannot be used."""

    reason: str
    """Why it cannot be used, without the sample's name."""


def read_sample(reader: ShardReader, index: Index, sample_id: int, *, raises: bool) -> Encoded | Unusable:
    """Return the encoded bytes of a sample, or why it is unusable.

    A shard that no longer matches the index raises ShardError if `raises`; otherwise that is a reason too.
    """
    if index.problem[sample_id]:
        return Unusable(index.reason(sample_id))
    try:
        return reader.read(sample_id)
    except ShardError as error:
        if raises:
            raise
        return Unusable(str(error).removeprefix(f"{index.name(sample_id)}: "))


class BadSamples:
    """The policy of `on_bad_sample`, and a record of the bad samples found."""

    def __init__(
        self, index: Index, sample_ids: NDArray[np.int64], policy: OnBadSample, max_bad: int | float | None
    ) -> None:
        """`sample_ids` are the samples in use. Raises BadSampleError if indexing found more bad ones than `max_bad`."""
        self._index = index
        self._policy = policy
        self._limit = math.floor(max_bad * len(sample_ids) + 1e-6) if isinstance(max_bad, float) else max_bad
        self._allowed = f"max_bad={max_bad}" + (f" ({self._limit} samples)" if isinstance(max_bad, float) else "")
        self._reasons: dict[int, str] = {}
        known = np.count_nonzero(index.problem[sample_ids]) + len(index.damage)
        if policy == "replace" and self._limit is not None and known > self._limit:
            raise BadSampleError(
                f"{known} bad samples and damaged shards were found by indexing, {self._allowed} allowed; "
                "`multimix-pipe verify` lists them"
            )

    @property
    def raises(self) -> bool:
        """Whether a bad sample is an error."""
        return self._policy == "raise"

    @property
    def reasons(self) -> dict[str, str]:
        """The bad samples replaced so far, as `shard.tar : key` -> reason."""
        return {self._index.full_key(sample_id): reason for sample_id, reason in self._reasons.copy().items()}

    def check_replaceable(self, sample_id: int, reason: str, attempt: int) -> None:
        """Raise BadSampleError under "raise", or if MAX_ATTEMPTS samples in a row were bad at one position."""
        name = self._index.name(sample_id)
        if self.raises:
            raise BadSampleError(
                f"{name}: {reason}. Leave it out with exclude=[{self._index.full_key(sample_id)!r}], or replace bad samples "
                'with on_bad_sample="replace"'
            )
        if attempt + 1 >= MAX_ATTEMPTS:
            raise BadSampleError(f"{MAX_ATTEMPTS} samples in a row are bad; the last one: {name}: {reason}")

    def record(self, sample_id: int, reason: str) -> None:
        """Count a replaced sample. Raises BadSampleError if more than `max_bad` different ones were replaced.

        Called when the batch is handed out: threads that run ahead must not decide at which step a run ends.
        """
        name = self._index.name(sample_id)
        if sample_id not in self._reasons:
            self._reasons[sample_id] = reason
            logger.warning("bad sample replaced: %s: %s", name, reason)
        if self._limit is not None and len(self._reasons) > self._limit:
            raise BadSampleError(
                f"{len(self._reasons)} bad samples found, {self._allowed} allowed; the last one: {name}: {reason}"
            )


class Replacements:
    """A step being executed, in which bad samples are replaced. Only one thread at a time may work on a row."""

    def __init__(self, plan: Plan, index: Index, reader: ShardReader, bad_samples: BadSamples, step: StepPlan) -> None:
        self._plan = plan
        self._index = index
        self._reader = reader
        self._bad_samples = bad_samples
        self._lock = threading.Lock()
        self._replaced: list[tuple[int, str]] = []
        self.step = step
        """The current plan of the step; replacing a row makes a new plan."""

    def read(self, row: int) -> Encoded | Unusable:
        """Return the encoded bytes of a row's sample, or why it is unusable."""
        sample_id = int(self.step.sample[row])
        return read_sample(self._reader, self._index, sample_id, raises=self._bad_samples.raises)

    def use(self, row: int, encoded: Encoded | Unusable, use: Callable[[int, Encoded], Used | Unusable]) -> Used:
        """Return `use(row, encoded)`; while that is Unusable, replace the row's sample and try again.

        `use` looks up the row's sample in `step`. Raises BadSampleError as `replace` does.
        """
        while True:
            result = encoded if isinstance(encoded, Unusable) else use(row, encoded)
            if not isinstance(result, Unusable):
                return result
            self.replace(row, result)
            encoded = self.read(row)

    def replace(self, row: int, bad: Unusable) -> None:
        """Draw another sample for a row. Raises BadSampleError if that is not allowed, or was done too often."""
        sample_id = int(self.step.sample[row])
        self._bad_samples.check_replaceable(sample_id, bad.reason, int(self.step.attempt[row]))
        with self._lock:
            self._replaced.append((sample_id, bad.reason))
            self.step = self._plan.replace_row(self.step, row)

    def record(self) -> None:
        """Count the replaced samples when the step is handed out. Raises BadSampleError if there are too many."""
        for sample_id, reason in sorted(self._replaced):
            self._bad_samples.record(sample_id, reason)
