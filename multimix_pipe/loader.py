"""`open_loader` and `Loader`: shards in, mixed batches out."""

from __future__ import annotations

import json
import logging
import os
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray

from multimix_pipe.backends import choose_backend, make_executor
from multimix_pipe.batch import Batch, PairTargets
from multimix_pipe.config import (
    Backend,
    DType,
    Keys,
    LastBatch,
    LoaderConfig,
    MultiMix,
    OnBadSample,
    Shuffle,
    Targets,
    TrainTransform,
    Transform,
    check_int,
)
from multimix_pipe.environment import (
    check_batch_fits,
    choose_device,
    default_threads,
    memory_explained,
    rank_and_world,
)
from multimix_pipe.errors import ConfigError, StateMismatchError
from multimix_pipe.execution import Executor, Job
from multimix_pipe.iteration import Epoch, close_at_exit
from multimix_pipe.plan import LANES, Plan, Schedule, StepPlan
from multimix_pipe.samples import choose_samples
from multimix_pipe.shards.bad_samples import BadSamples
from multimix_pipe.shards.index import Index, open_index
from multimix_pipe.shards.reader import ShardReader
from multimix_pipe.training.targets import mix_targets, pair_targets
from multimix_pipe.transfer import to_device

logger = logging.getLogger("multimix_pipe")

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

STATE_VERSION = 1


def open_loader(
    shards: Source,
    *,
    batch_size: int,
    num_classes: int,
    mix: MultiMix | Literal["auto"] | None = "auto",
    transform: Transform = TrainTransform(),
    backend: Backend = "auto",
    device: str | torch.device = "auto",
    dtype: DType = "float32",
    channels_last: bool = False,
    shuffle: Shuffle | Literal["auto"] = "auto",
    last_batch: LastBatch | Literal["auto"] = "auto",
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    on_bad_sample: OnBadSample = "raise",
    max_bad: int | float | None = None,
    num_threads: int | None = None,
    prefetch: int = 2,
    targets: Targets = "rows",
    label: str = "cls",
    exif: bool = False,
    expand: bool = True,
    exclude: Keys | None = None,
    samples: Keys | None = None,
    weights: Sequence[float] | NDArray[np.floating] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Loader:
    """Open WebDataset shards as an iterable of `Batch`es, in place of a torch DataLoader.

    The index of the shards is built at the first opening and kept beside them.

    Args:
        shards: path, glob, brace pattern, folder, http(s) URL (with `cache_dir`), or a list of those.
        batch_size: B, samples decoded per process and step. Each is mixed with one partner: the model sees B*K rows.
        num_classes: labels must lie in [0, num_classes).
        mix: the mixing; None for none. Default: `MultiMix()` with a TrainTransform, None with an EvalTransform.
        transform: `TrainTransform` (random crop and flip) or `EvalTransform` (resize and centre crop).
        backend: "dali", "torch", or "auto": DALI where it imports, which one log line says.
        device: where the batches are to be: "cpu", "cuda", "cuda:1", "mps", or "auto". "cuda" means cuda:LOCAL_RANK.
        dtype: of the images; they are mixed in float32 and rounded once. Targets are always float32.
        channels_last: give the images that memory format.
        shuffle: "global", "window" (sequential reads, a few shards at a time, which must have been shuffled when written) or
            "none". Default: "global" with a TrainTransform, "none" with an EvalTransform.
        last_batch: "wrap" (equal steps in every process, the epoch's first samples are repeated), "drop" or "partial" (every
            sample exactly once; processes may differ by one step). Default: "wrap" to train, "partial" to evaluate.
        seed: of every draw; 0 .. 2**64-1. The same seed gives the same epochs on any machine, backend and number of processes.
        rank, world_size: of this process; None: torch.distributed, else torchrun's environment, else 0 of 1.
        on_bad_sample: "raise", or "replace" by a deterministic other sample; `Loader.bad_samples` names them. A damaged shard is
            an error, or costs its samples from the damage on; so does one that is cut or gone while the loader runs.
        max_bad: under "replace", how many different bad samples there may be: a number, or as a float a share of the samples
            used. One more ends the run with an error: at opening, where indexing finds them, else at its step.
        num_threads: decoding threads; None: usable cores / LOCAL_WORLD_SIZE.
        prefetch: batches prepared ahead.
        targets: "rows", dense (B*K, num_classes); or "pairs", (labels, partners' labels, lam).
        label: "cls", or "json:KEY" for an integer field of the samples' json.
        exif: rotate images as their EXIF orientation says. Off, as in the usual ImageNet training.
        expand: False gives plain (B, C, H, W) images, int64 labels and the mixing as `batch.plan` alone.
        exclude, samples: keys to leave out, keys to keep: a list, or a text file with one a line.
        weights: a number >= 0 for each sample used, in stored order: samples are drawn with replacement by weight.
        cache_dir: folder for downloaded shards, and for indices of shards whose folder cannot be written.

    Raises:
        ConfigError: an argument, or a combination, that cannot work.
        ShardError: shards that are missing or damaged.
        MultiMixError: their index cannot be written.
        MissingBackendError: backend="dali" where DALI does not import.

    Iterating raises BadSampleError at the step of a bad sample, after the batches before it.
    """
    trains = isinstance(transform, TrainTransform)
    rank, world_size = rank_and_world(rank, world_size)
    config = LoaderConfig(
        batch_size=batch_size,
        num_classes=num_classes,
        mix=(MultiMix() if trains else None) if isinstance(mix, str) and mix == "auto" else mix,
        transform=transform,
        shuffle=("global" if trains else "none") if shuffle == "auto" else shuffle,
        last_batch=("wrap" if trains else "partial") if last_batch == "auto" else last_batch,
        seed=seed,
        backend=backend,
        device=str(device),
        dtype=dtype,
        channels_last=channels_last,
        rank=rank,
        world_size=world_size,
        on_bad_sample=on_bad_sample,
        max_bad=max_bad,
        num_threads=default_threads() if num_threads is None else num_threads,
        prefetch=prefetch,
        targets=targets,
        label=label,
        exif=exif,
        expand=expand,
        exclude=exclude,
        samples=samples,
        weights=weights,
    )
    index = open_index(
        shards,
        label=label,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        keep_damaged=on_bad_sample == "replace",
    )
    return Loader(index, config)


class Loader:
    """An iterable of `Batch`es; each `iter()` is one epoch, the next one each time. Made by `open_loader`.

    A context manager: leaving it closes it. Threads may share it, and the iteration over it: their calls take turns. It is of
    the process that opened it.
    """

    def __init__(self, index: Index, config: LoaderConfig) -> None:
        self._index = index
        self._config = config
        self._pid = os.getpid()
        # of the epoch and what runs; taken after `_check_process`, as a forked child may find it locked
        self._lock = threading.RLock()
        device = choose_device(config.device)
        self._backend = choose_backend(config.backend, device)
        check_batch_fits(config, device)
        samples = choose_samples(index, config)
        self._plan = Plan(samples, config.transform, config.mix, config.shuffle, config.seed, config.batch_size)
        self._bad_samples = BadSamples(index, samples.number, config.on_bad_sample, config.max_bad)
        self._reader = ShardReader(index)
        self._job = Job(index, self._plan, self._reader, self._bad_samples, config, device)
        self._executor: Executor | None = None
        # weak: after a `break` nothing runs ahead, and a loader is in no cycle
        self._running: weakref.ref[Epoch] | None = None
        self._epoch = 0
        self._start = 0  # position at which the epoch is entered: 0, or where a state resumed it
        self._done_before = 0  # steps of the epoch before `_start`
        self._handed = 0  # steps handed out since `_start`
        self._entered = False  # the epoch has been iterated over
        self._restored = False  # the epoch and the position come from a state
        close_at_exit(self)
        if config.last_batch == "drop" and not len(self):
            logger.warning(
                'an epoch has no steps: %d samples are less than batch_size times world_size, and last_batch="drop"',
                len(samples),
            )
        logger.info(
            "%d samples, backend %s on %s, process %d of %d, %d threads",
            *(len(samples), self._backend, device, config.rank, config.world_size, config.num_threads),
        )

    @property
    def backend(self) -> str:
        """ "dali" or "torch"."""
        return self._backend

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self._job.device

    @property
    def index(self) -> Index:
        """The shards' index: labels, sizes and keys of all samples."""
        return self._index

    @property
    def bad_samples(self) -> dict[str, str]:
        """Bad samples replaced so far: `shard.tar : key` -> what is wrong with it."""
        return self._bad_samples.reasons

    def __len__(self) -> int:
        """Steps of the epoch for this process; after a resume in mid-epoch, those done and those remaining."""
        self._check_process()
        with self._lock:
            return self._done_before + len(self._schedule())

    def __iter__(self) -> Iterator[Batch]:
        self._check_process()
        with self._lock:
            self._stop_running()
            if self._entered:
                self._enter(self._epoch + 1)
            self._entered, self._handed, self._restored = True, 0, False
            running = Epoch(self._batches(), self._lock, self._check_process)
            self._running = weakref.ref(running)
            return running

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next to be iterated: from its start, or, if a loaded state is in it, from that state's position."""
        check_int("epoch", epoch, 0, 2**64 - 1)
        self._check_process()
        with self._lock:
            self._stop_running()
            if not (self._restored and epoch == self._epoch):
                self._enter(int(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, JSON-serialisable: epoch, and the samples handed out in it over all processes.

        The same in every process at the same step; with last_batch="partial" keep that of process 0, which has as many steps as
        any. Batches that ran ahead and were not handed out do not count.
        """
        self._check_process()
        with self._lock:
            place = {
                "epoch": self._epoch,
                "samples": self._schedule().position_after(self._handed),
                "steps": self._done_before + self._handed,
                "order_batch_size": self._plan.order_batch_size,
            }
        return {"version": STATE_VERSION, **self._identity(), **place}

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Continue where `state` was taken; the number of processes may have changed.

        A state of another data set, seed or configuration raises StateMismatchError, which names the fields. With strict=False
        a warning names them instead, and this loader's epoch goes on behind as many samples as the state's had handed out. Where
        `batch_size` alone differs, order, crops and weights stay as they were, and partners change.
        """
        self._check_process()
        if not isinstance(state, dict):
            raise StateMismatchError(f"a state is the dict that state_dict() gave; found {type(state).__name__}")
        if state.get("version") != STATE_VERSION:
            raise StateMismatchError(
                f"version: a state of version {STATE_VERSION} is required, found {state.get('version')!r}"
            )
        differing = [
            f"{name}: this loader has {mine!r}, the state has {theirs!r}"
            for name, mine, theirs in _differences(self._identity(), state)
        ]
        if differing and strict:
            hint = "Open the loader as it was, or go on all the same with strict=False"
            raise StateMismatchError(f"{'; '.join(differing)}. {hint}")
        numbers = [state.get(name) for name in ("epoch", "samples", "steps", "order_batch_size")]
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or not numbers[-1]:
            raise StateMismatchError(
                f"epoch, samples and steps must be ints >= 0 and order_batch_size >= 1; found {numbers}"
            )
        if differing:
            logger.warning("a state that differs from the loader is loaded. %s", "; ".join(differing))
        with self._lock:
            self._stop_running()
            self._enter(state["epoch"])
            self._start, self._done_before, self._restored = state["samples"], state["steps"], True
            self._plan.order_batch_size = state["order_batch_size"]

    def close(self) -> None:
        """Stop threads and free files and device memory. Iterating again opens them again.

        In a forked child it does nothing: the threads to stop are its parent's.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._stop_running()
            if self._executor is not None:
                self._executor.close()
                self._reader.close()
            self._executor = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a loader holds threads and open files, and cannot be copied or sent to another process. Open it there"
        )

    def __repr__(self) -> str:
        c = self._config
        return (
            f"Loader({len(self._plan.samples)} samples, batch_size={c.batch_size}, mix={c.mix}, backend={self._backend!r}, "
            f"device={str(self.device)!r}, rank {c.rank} of {c.world_size})"
        )

    def _enter(self, epoch: int) -> None:
        self._epoch, self._start, self._done_before, self._handed = epoch, 0, 0, 0
        self._entered = self._restored = False
        self._plan.order_batch_size = self._config.batch_size

    def _schedule(self) -> Schedule:
        c = self._config
        return Schedule(len(self._plan.samples), c.batch_size, c.world_size, c.rank, c.last_batch, self._start)

    def _batches(self) -> Generator[Batch, None, None]:
        epoch = self._epoch
        steps = (self._plan.step(epoch, first, past) for first, past in self._schedule())
        with memory_explained(self._config, self._job.device):
            if self._executor is None:
                self._executor = make_executor(self._backend, self._job)
            with closing(self._executor.run(steps)) as executed:
                for step, images in executed:
                    batch = self._batch(step, images)
                    self._handed += 1  # not before: one that fails here was not handed out
                    yield batch
        self._enter(epoch + 1)

    def _batch(self, step: StepPlan, images: torch.Tensor) -> Batch:
        device, config = self._job.device, self._config
        labels = to_device(self._index.label[step.sample], device)
        targets: torch.Tensor | PairTargets = labels
        if self._job.mixes:
            partner, lam = to_device(step.partner, device), to_device(step.lam, device)
            if config.targets == "pairs":
                targets = pair_targets(labels, partner, lam)
            else:
                targets = mix_targets(labels, partner, lam, config.num_classes)
        return Batch(images, targets, labels, step, lambda: self._index.keys(step.sample))

    def _stop_running(self) -> None:
        """To be called with the lock held."""
        if self._running is not None and (epoch := self._running()) is not None:
            epoch.end()
        self._running = None

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigError(
                f"a loader must be used in the process that opened it ({self._pid}); this is a forked child ({os.getpid()}). "
                "Open the loader in the child"
            )

    def _identity(self) -> dict[str, Any]:
        """The fields of a state that must agree with the loader's."""
        c = self._config
        identity = {
            "data": self._index.fingerprint,
            "subset": self._plan.samples.digest,
            "seed": c.seed,
            "batch_size": c.batch_size,
            "shuffle": c.shuffle,
            "last_batch": c.last_batch,
            "exif": c.exif,
            "on_bad_sample": c.on_bad_sample,
            "mix": None if c.mix is None else asdict(c.mix),
            "transform": {"kind": type(c.transform).__name__, **asdict(c.transform), "size": c.transform.height_width},
            "lanes": LANES,
        }
        return cast("dict[str, Any]", json.loads(json.dumps(identity)))


def _differences(mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names of the fields of `mine` that differ, with both values; of two dicts in turn the fields within."""
    for name, value in mine.items():
        other = theirs.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
            yield from ((f"{name}.{inner}", *both) for inner, *both in _differences(value, other))
        elif other != value:
            yield name, value, other
