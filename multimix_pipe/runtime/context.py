"""The interface of a backend, which executes step plans. It is implemented by `dali.executor` and `native.executor`."""

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
from multimix_pipe.mixing import MixSchedule, MultiMix
from multimix_pipe.plan import Plan, StepPlan
from multimix_pipe.runtime.bad_samples import BadSamples, Replacements
from multimix_pipe.runtime.stats import ExecutorStats
from multimix_pipe.runtime.tensors import StepTensors
from multimix_pipe.shards.cores import share_of_cores
from multimix_pipe.shards.index import Index
from multimix_pipe.shards.reader import ShardReader


@dataclass(frozen=True)
class LoaderConfig:
    """All settings of `open_loader` except the shards; its docstring explains them."""

    batch_size: int
    num_classes: int
    mix: MultiMix | MixSchedule | None
    transform: Transform
    shuffle: Shuffle
    last_batch: LastBatch
    seed: int
    backend: Backend
    device: str
    dtype: DType
    channels_last: bool
    rank: int | None
    world_size: int | None
    on_bad_sample: OnBadSample
    max_bad: int | float | None
    num_threads: int | None
    prefetch: int
    decode: Decode
    targets: Targets
    label: str | None
    multilabel: bool
    exif: bool
    expand: bool
    exclude: Keys | None
    samples: Keys | None
    weights: Any = field(compare=False)

    def __post_init__(self) -> None:
        check_int("batch_size", self.batch_size, 1)
        check_int("num_classes", self.num_classes, 1)
        if self.mix is not None and not isinstance(self.mix, (MultiMix, MixSchedule)):
            raise ConfigError(
                f"mix must be a MultiMix, None, or a mapping of epochs to these; found {self.mix!r}. "
                "Give a method as MultiMix(method=...)"
            )
        if not isinstance(self.transform, (TrainTransform, EvalTransform)):
            raise ConfigError(
                f"transform must be a TrainTransform or an EvalTransform; found {self.transform!r}. Apply other operations "
                "to the batch: docs/guides/augmentation.md"
            )
        if isinstance(self.shuffle, bool):
            raise ConfigError(
                f'shuffle must be "global" (as shuffle=True), "window" or "none" (as shuffle=False); found {self.shuffle}'
            )
        check_choice("shuffle", self.shuffle, get_args(Shuffle))
        check_choice("last_batch", self.last_batch, get_args(LastBatch))
        check_int("seed", self.seed, 0, 2**64 - 1)
        check_choice("backend", self.backend, get_args(Backend))
        check_choice("dtype", self.dtype, get_args(DType))
        if (self.rank is None) != (self.world_size is None):
            raise ConfigError(
                f"rank and world_size must be given together; found rank={self.rank}, world_size={self.world_size}"
            )
        if self.world_size is not None:
            check_int("world_size", self.world_size, 1)
            check_int("rank", self.rank, 0, self.world_size - 1)
        check_choice("on_bad_sample", self.on_bad_sample, get_args(OnBadSample))
        if self.max_bad is not None and self.on_bad_sample == "raise":
            raise ConfigError(
                f'max_bad limits how many samples on_bad_sample="replace" replaces; found max_bad={self.max_bad} with '
                'on_bad_sample="raise", which ends the run at the first bad sample'
            )
        if isinstance(self.max_bad, float):
            check_number("max_bad, as a share of the samples,", self.max_bad, 0.0, 1.0)
        elif self.max_bad is not None:
            check_int("max_bad", self.max_bad, 0)
        if self.num_threads is not None:
            check_int("num_threads", self.num_threads, 1, 1024)
        check_int("prefetch", self.prefetch, 1, 64)
        check_choice("decode", self.decode, get_args(Decode))
        check_choice("targets", self.targets, get_args(Targets))
        for name in ("channels_last", "exif", "expand", "multilabel"):
            check_bool(name, getattr(self, name))
        check_label(self.label)
        if self.label is None and self.mix is not None:
            raise ConfigError(f"label=None has nothing to mix and needs mix=None; found {self.mix}")
        if not self.expand and self.mix is None:
            raise ConfigError(
                "expand=False returns plain images and their mixing plan; it needs mix=MultiMix(...), found None"
            )
        if not self.transform.random and self.mix is not None and any(mix.crops == "each" for mix in self.mix.mixes):
            raise ConfigError(
                f'crops="each" draws another crop for each member and needs a TrainTransform; found {self.transform!r}. '
                'Use crops="same"'
            )
        if self.targets == "pairs" and (self.mix is None or not self.expand):
            raise ConfigError(
                f'targets="pairs" needs mix=MultiMix(...) and expand=True; found mix={self.mix}, expand={self.expand}'
            )
        make_plain(self)


@dataclass(frozen=True, eq=False)
class LoaderContext:
    """Everything that an executor needs: where the bytes are, the plan, the settings, and the device."""

    index: Index
    plan: Plan
    reader: ShardReader
    bad_samples: BadSamples
    config: LoaderConfig
    backend: Literal["dali", "torch"]
    device: torch.device
    classes: tuple[str, ...] | None = None
    """Class names by class id, if known."""
    local_world_size: int = 1
    """Number of processes that share this machine's cores and storage."""

    @property
    def num_threads(self) -> int:
        """Number of decoding threads.

        With DALI on a GPU a quarter of the cores is left to reading, feeding and the consumer, which its threads would displace.
        """
        if self.config.num_threads is not None:
            return self.config.num_threads
        cores = share_of_cores(self.local_world_size)
        return cores - cores // 4 if self.backend == "dali" and self.device.type == "cuda" else cores

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the images of a batch."""
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return dtype

    @property
    def mixes(self) -> bool:
        """Whether the executor forms the mixed rows of each pair: K, or one in an epoch without mixing."""
        return self.config.mix is not None and self.config.expand

    def tensors(self, step: StepPlan) -> StepTensors:
        """Return a step's labels, and its mixing plan if the executor mixes, on the loader's device."""
        return StepTensors.of(self.index.labels(step.sample), step.mix if self.mixes else None, self.device)

    def replacements(self, step: StepPlan) -> Replacements:
        """Return the `Replacements` of a step that is about to be executed."""
        return Replacements(self.plan, self.index, self.reader, self.bad_samples, step)

    def orientation(self, sample_id: int) -> int:
        """Return the EXIF orientation to apply, 1..8; always 1 (none) unless exif=True."""
        return int(self.index.orientation[sample_id]) if self.config.exif else 1


@dataclass(frozen=True, eq=False)
class ExecutedStep:
    """The result of executing a step's plan."""

    step: StepPlan
    """The plan that was executed, with bad samples replaced."""
    images: torch.Tensor
    """(B*K, C, H, W) mixed rows, or (B, C, H, W) without mixing; (B*K, C, H, W) if there are crops for each member."""
    tensors: StepTensors
    """Labels and mixing plan on the images' device."""


class Executor(Protocol):
    """Executes step plans, several steps ahead of the consumer."""

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        """Yield the executed steps in order.

        A step's error is raised when that step is due, after the batches before it. Closing the iterator discards the steps that
        were executed ahead.
        """
        ...

    def stats(self) -> ExecutorStats:
        """Return what was done since the executor was made. Thread-safe."""
        ...

    def close(self) -> None:
        """Free threads, files and device memory."""
        ...
