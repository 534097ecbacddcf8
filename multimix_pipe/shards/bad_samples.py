"""What happens when a sample cannot be used: an error that names it, or a replacement that is counted."""

from __future__ import annotations

import logging
import threading

from multimix_pipe.config import OnBadSample
from multimix_pipe.errors import BadSampleError
from multimix_pipe.shards.index import Index

logger = logging.getLogger("multimix_pipe")

MAX_ATTEMPTS = 100
"""Replacements tried for one position before the run ends: that many bad ones in a row mean a broken data set."""


class BadSamples:
    """The policy of `on_bad_sample`, and the record of what it met. Thread-safe."""

    def __init__(self, index: Index, policy: OnBadSample, max_bad: int | None) -> None:
        self._index = index
        self._policy = policy
        self._max_bad = max_bad
        self._lock = threading.Lock()
        self._reasons: dict[int, str] = {}

    @property
    def reasons(self) -> dict[str, str]:
        """The bad samples met so far: `shard.tar : key` -> what is wrong."""
        with self._lock:
            return {self._index.name(sample): reason for sample, reason in self._reasons.items()}

    def report(self, sample: int, reason: str, attempt: int) -> None:
        """Record a bad sample. Raises BadSampleError under "raise", past `max_bad`, and after MAX_ATTEMPTS in a row."""
        name = self._index.name(sample)
        if self._policy == "raise":
            raise BadSampleError(
                f'{name}: {reason}. Leave it out with exclude=["{self._index.key(sample)}"], or train on others in the '
                'place of bad samples with on_bad_sample="replace"'
            )
        with self._lock:
            new = sample not in self._reasons
            self._reasons.setdefault(sample, reason)
            count = len(self._reasons)
        if new:
            logger.warning("bad sample replaced: %s: %s", name, reason)
        if self._max_bad is not None and count > self._max_bad:
            raise BadSampleError(
                f"{count} bad samples met, max_bad={self._max_bad} allowed; the last one: {name}: {reason}"
            )
        if attempt + 1 >= MAX_ATTEMPTS:
            raise BadSampleError(f"{MAX_ATTEMPTS} replacements in a row are bad too; the last one: {name}: {reason}")
