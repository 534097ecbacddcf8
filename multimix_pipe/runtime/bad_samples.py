"""What happens when a sample cannot be used: an error that names it, or a replacement that is counted."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import OnBadSample
from multimix_pipe.errors import BadSampleError
from multimix_pipe.shards.index import Index

logger = logging.getLogger("multimix_pipe")

MAX_ATTEMPTS = 100
"""Replacements tried for one position before the run ends: that many bad ones in a row mean a broken data set."""


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
    def reasons(self) -> dict[str, str]:
        """The bad samples replaced so far: `shard.tar : key` -> what is wrong."""
        return {self._index.full_key(sample): reason for sample, reason in self._reasons.copy().items()}

    def check_replaceable(self, sample: int, reason: str, attempt: int) -> None:
        """Raise BadSampleError under "raise", and where a position has had MAX_ATTEMPTS bad samples in a row."""
        name = self._index.name(sample)
        if self._policy == "raise":
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
