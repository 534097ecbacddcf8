"""What a backend is: an executor of step plans. The two implementations are `dali.executor` and `native.executor`."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch

from multimix_pipe.config import (
    Backend,
    Decode,
    DType,
    EvalTransform,
    Keys,
    LastBatch,
    OnBadSample,
    Shuffle,
    Targets,
    TrainTransform,
    Transform,
    check_bool,
    check_choice,
    check_int,
    check_label,
    check_number,
    make_plain,
)
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import MultiMix
from multimix_pipe.plan import Plan, StepPlan
from multimix_pipe.runtime.bad_samples import BadSamples, Replacements
from multimix_pipe.runtime.tensors import StepTensors
from multimix_pipe.shards.index import Index
from multimix_pipe.shards.reader import ShardReader


@dataclass(frozen=True)
class LoaderConfig:
    """Every setting of `open_loader` but the shards; its docstring explains them."""

    batch_size: int
    num_classes: int
    mix: MultiMix | None
    transform: Transform
    shuffle: Shuffle
    last_batch: LastBatch
    seed: int
    backend: Backend
    device: str
    dtype: DType
    channels_last: bool
    rank: int
    world_size: int
    on_bad_sample: OnBadSample
    max_bad: int | float | None
    num_threads: int
    prefetch: int
    decode: Decode
    targets: Targets
    label: str
    exif: bool
    expand: bool
    exclude: Keys | None
    samples: Keys | None
    weights: Any = field(compare=False)

    def __post_init__(self) -> None:
        check_int("batch_size", self.batch_size, 1)
        check_int("num_classes", self.num_classes, 1)
        if self.mix is not None and not isinstance(self.mix, MultiMix):
            raise ConfigError(f"mix must be a MultiMix or None; found {self.mix!r}")
        if not isinstance(self.transform, (TrainTransform, EvalTransform)):
            raise ConfigError(f"transform must be a TrainTransform or an EvalTransform; found {self.transform!r}")
        check_choice("shuffle", self.shuffle, get_args(Shuffle))
        check_choice("last_batch", self.last_batch, get_args(LastBatch))
        check_int("seed", self.seed, 0, 2**64 - 1)
        check_choice("backend", self.backend, get_args(Backend))
        check_choice("dtype", self.dtype, get_args(DType))
        check_int("world_size", self.world_size, 1)
        check_int("rank", self.rank, 0, self.world_size - 1)
        check_choice("on_bad_sample", self.on_bad_sample, get_args(OnBadSample))
        if isinstance(self.max_bad, float):
            check_number("max_bad, as a share of the samples,", self.max_bad, 0.0, 1.0)
        elif self.max_bad is not None:
            check_int("max_bad", self.max_bad, 0)
        check_int("num_threads", self.num_threads, 1, 1024)
        check_int("prefetch", self.prefetch, 1, 64)
        check_choice("decode", self.decode, get_args(Decode))
        check_choice("targets", self.targets, get_args(Targets))
        for name in ("channels_last", "exif", "expand"):
            check_bool(name, getattr(self, name))
        check_label(self.label)
        if not self.expand and self.mix is None:
            raise ConfigError(
                "expand=False hands out the mixing plan beside plain images; it needs mix=MultiMix(...), found None"
            )
        if self.targets == "pairs" and (self.mix is None or not self.expand):
            raise ConfigError(
                f'targets="pairs" needs mix=MultiMix(...) and expand=True; found mix={self.mix}, expand={self.expand}'
            )
        make_plain(self)


@dataclass(frozen=True, eq=False)
class LoaderContext:
    """All that an executor needs to know: where the bytes are, what to do with them, and for whom."""

    index: Index
    plan: Plan
    reader: ShardReader
    bad_samples: BadSamples
    config: LoaderConfig
    backend: Literal["dali", "torch"]
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

    def tensors(self, step: StepPlan) -> StepTensors:
        """A step's labels, and its mixing where the executor mixes, on the loader's device."""
        return StepTensors.of(self.index.label[step.sample], step.mix if self.mixes else None, self.device)

    def replacements(self, step: StepPlan) -> Replacements:
        """A step to be executed, with other samples in the place of bad ones."""
        return Replacements(self.plan, self.index, self.reader, self.bad_samples, step)

    def orientation(self, sample: int) -> int:
        """The EXIF orientation to apply, 1..8: 1 (none) unless exif=True."""
        return int(self.index.orientation[sample]) if self.config.exif else 1


@dataclass(frozen=True, eq=False)
class ExecutedStep:
    """What an executor makes of a step's plan."""

    step: StepPlan
    """The plan that was executed: bad samples are replaced in it."""
    images: torch.Tensor
    """(B*K, C, H, W) mixed rows, or (B, C, H, W) where nothing is mixed."""
    tensors: StepTensors
    """Labels and mixing on the images' device."""


class Executor(Protocol):
    """Executes step plans, some steps ahead of its consumer."""

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """Yield each step executed, in order.

        The error of a step is raised at
        that step, after the batches before it. Closing the iterator drops what ran ahead.
        """
        ...

    def close(self) -> None:
        """Free threads, files and device memory."""
        ...
