"""What a backend is: an executor of step plans. The two implementations are `dali.executor` and `native.executor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from multimix_pipe.config import LoaderConfig
from multimix_pipe.plan import Plan, StepPlan
from multimix_pipe.shards.bad_samples import BadSamples
from multimix_pipe.shards.index import Index
from multimix_pipe.shards.reader import ShardReader


@dataclass(frozen=True, eq=False)
class Job:
    """All that an executor needs to know: where the bytes are, what to do with them, and for whom."""

    index: Index
    plan: Plan
    reader: ShardReader
    bad_samples: BadSamples
    config: LoaderConfig
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images handed out."""
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return dtype

    @property
    def mixes(self) -> bool:
        """Whether the executor forms the K mixed rows of each pair."""
        return self.config.mix is not None and self.config.expand

    def read(self, sample: int, memory: NDArray[np.uint8] | None = None) -> NDArray[np.uint8] | str:
        """The encoded bytes of a sample, or why it cannot be used.

        A shard that no longer holds them costs its samples where bad ones are replaced; else it raises ShardError.
        """
        return self.reader.read_usable(sample, memory, raises=self.config.on_bad_sample == "raise")

    def orientation(self, sample: int) -> int:
        """The EXIF orientation to apply, 1..8: 1 (none) unless exif=True."""
        return int(self.index.orientation[sample]) if self.config.exif else 1


@dataclass(frozen=True, eq=False)
class Replacements:
    """The bad samples of one step. Several threads may replace rows of a step, each row by one thread."""

    job: Job
    step: StepPlan
    _attempts: Counter[int] = field(default_factory=Counter)
    _met: list[tuple[int, str]] = field(default_factory=list)

    def replace(self, row: int, reason: str) -> None:
        """Put another sample in the place of one that cannot be used. Raises BadSampleError where that is not allowed."""
        sample = int(self.step.sample[row])
        self.job.bad_samples.check_replaceable(sample, reason, self._attempts[row])
        self._met.append((sample, reason))
        self._attempts[row] += 1
        self.job.plan.redraw_row(self.step, row, self._attempts[row])

    def record(self) -> None:
        """Count them, as the step is handed out. Raises BadSampleError where they are too many."""
        for sample, reason in sorted(self._met):
            self.job.bad_samples.record(sample, reason)


class Executor(Protocol):
    """Executes step plans, some steps ahead of its consumer."""

    def run(self, steps: Iterable[StepPlan]) -> Generator[tuple[StepPlan, torch.Tensor], None, None]:
        """Yield each step with its images, in order: (B*K, C, H, W) mixed rows, or (B, C, H, W) where nothing is mixed.

        The step handed back is the one that was executed: bad samples are replaced in it. The error of a step is raised at
        that step, after the batches before it. Closing the iterator drops what ran ahead.
        """
        ...

    def close(self) -> None:
        """Free threads, files and device memory."""
        ...
