"""`Loader`, an iterable of batches whose position can be saved, restored and moved."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import torch

from multimix_pipe.batch import Batch, PairTargets
from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.loader import state as states
from multimix_pipe.loader.agreement import check_ranks
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.loader.epoch import Epoch, close_at_exit
from multimix_pipe.loader.keys import PackedKeys
from multimix_pipe.loader.memory import explain_out_of_memory
from multimix_pipe.loader.position import Position, Tracker
from multimix_pipe.loader.rank import Ranks, processes_here
from multimix_pipe.plan import Schedule
from multimix_pipe.runtime.context import ExecutedStep, Executor, LoaderContext
from multimix_pipe.runtime.stats import NOTHING_DONE, IterationStats
from multimix_pipe.shards.index import Index
from multimix_pipe.shards.launcher import World
from multimix_pipe.training.targets import mix_targets, pair_targets

logger = logging.getLogger("multimix_pipe")


class EpochSampler:
    """Stands for a sampler: trainers that call `loader.sampler.set_epoch(epoch)` reach the loader."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """Call `Loader.set_epoch`."""
        self._loader.set_epoch(epoch)


class Loader:
    """An iterable of `Batch`es, one epoch per iteration. Use `open_loader` to make one.

        loader.load_state_dict(checkpoint["loader"])  # resume, at any step
        for epoch in range(loader.state_dict()["epoch"], epochs):
            for images, targets in loader:
                ...
                checkpoint["loader"] = loader.state_dict()

    An iteration begins with its first batch, not with `iter(loader)`. It then shows the epoch of the last `set_epoch` or
    `load_state_dict`, or else the epoch after the one shown last, and ends the previous iteration, which is an error to continue.
    Threads may share a loader and its iterator; their calls take turns. A loader belongs to the process that opened it: it cannot
    be pickled, and a forked child cannot use it. `close`, or leaving a `with` block, frees its threads, files and device memory.
    Settings cannot be changed: open another loader.
    """

    batch_sampler = None
    """None: for trainers that look for one."""

    def __init__(self, context: LoaderContext, executor: Executor | None = None) -> None:
        """Make a loader from its parts. `executor` replaces the backend's own one, for tests and benchmarks."""
        config = context.config
        self._context = context
        self._pid = os.getpid()
        # guards everything below; acquired after `_check_process`, because a forked child may inherit it locked
        self._lock = threading.RLock()
        self._executor = executor
        # weak, so that dropping the iterator stops its read-ahead and the loader is in no reference cycle
        self._running: weakref.ref[Epoch] | None = None
        self._ranks = Ranks(config.rank, config.world_size)
        self._tracker = Tracker(config.batch_size)
        self._stats = IterationStats()
        self._executor_stats = NOTHING_DONE  # of the executor that was closed last
        close_at_exit(self)
        world = self.world
        if config.last_batch == "drop" and not len(self._schedule(world, 0)):
            logger.warning(
                'an epoch has no steps: %d samples are fewer than batch_size times world_size, and last_batch="drop"',
                self.num_samples,
            )
        elif config.last_batch == "wrap" and self.num_samples < config.batch_size * world.size:
            logger.warning(
                "an epoch has a single step, which shows samples repeatedly: there are %d, batch_size times world_size is %d. "
                'Choose a smaller batch_size, or last_batch="partial"',
                *(self.num_samples, config.batch_size * world.size),
            )
        logger.info(
            "%d samples, backend %s on %s, process %d of %d, %d threads",
            *(self.num_samples, context.backend, context.device, world.rank, world.size, context.num_threads),
        )

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                f"a loader has no attribute {name!r} that can be set: its settings are fixed when it is opened. "
                "Pass them to open_loader"
            )
        super().__setattr__(name, value)

    @property
    def context(self) -> LoaderContext:
        """The parts of this loader. Not part of the public API."""
        return self._context

    @property
    def backend(self) -> str:
        """ "dali" or "torch"."""
        return self.context.backend

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.context.device

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by class id: `open_loader`'s `classes`, else those of the classes.json beside the shards, else None."""
        return self.context.classes

    @property
    def num_classes(self) -> int:
        """The number of classes: labels lie in [0, num_classes)."""
        return self.context.config.num_classes

    @property
    def world(self) -> World:
        """This process's rank and the number of processes, as far as they are known now. Not part of the public API."""
        return self._ranks.now()

    @property
    def index(self) -> Index:
        """The index of the shards: labels, image sizes and keys of all samples."""
        return self.context.index

    @property
    def bad_samples(self) -> dict[str, str]:
        """The bad samples replaced so far, as a dict from `shard.tar : key` to what is wrong."""
        return self.context.bad_samples.reasons

    @property
    def batch_size(self) -> int:
        """B, the samples decoded per process and step; a batch has B*K rows."""
        return self.context.config.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether an incomplete last step is dropped: last_batch="drop"."""
        return self.context.config.last_batch == "drop"

    @property
    def num_samples(self) -> int:
        """N, the samples of an epoch, over all processes."""
        return len(self.context.plan.samples)

    @property
    def sampler(self) -> EpochSampler:
        """An object with `set_epoch`, for trainers that look for a distributed sampler."""
        return EpochSampler(self)

    def stats(self) -> dict[str, float | int | None]:
        """Return what the running iteration, or the last one, has measured since its first `next`.

        "images": decoded images handed out; "seconds": until the last of them; "images_per_s": their ratio. "wait_s": seconds in
        which the trainer waited for a batch, which is what a faster loader could save. "decode_s": seconds of decoding and
        resizing, summed over the threads; None if DALI decodes. "mix_s": likewise of normalising and mixing on the host.
        "queue": batches that are ready now; None if DALI holds them. "bad": bad samples replaced since the loader was opened.

        Other threads may call it while a batch is waited for; "wait_s" does not include that wait yet.
        """
        self._check_process()
        executor = self._executor  # no lock: it is held while a batch is waited for
        now = self._executor_stats if executor is None else executor.stats()
        return {**self._stats.report(now), "bad": len(self.bad_samples)}

    def denormalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pixels in [0, 1] of images (..., 3, H, W) of this loader, in float32: `image * std + mean`."""
        if images.ndim < 3 or images.shape[-3] != 3:
            raise ConfigError(f"images must be (..., 3, H, W); found {tuple(images.shape)}")
        transform = self.context.config.transform
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None]
            for values in (transform.mean, transform.std)
        )
        return (images.float() * std + mean).clamp_(0, 1)

    @property
    def steps_done(self) -> int:
        """Steps of the epoch done so far, out of `len(loader)`: the `initial` of a progress bar."""
        self._check_process()
        with self._lock:
            return self._tracker.position.steps

    def __len__(self) -> int:
        """Return the steps of the epoch in this process: those done plus those left.

        The epoch is the one that `state_dict` names. After a resume in mid-epoch, `loader.steps_done` of them are done already.
        """
        self._check_process()
        with self._lock:
            return self._tracker.steps(partial(self._schedule, self._ranks.for_answer()))

    def __getitem__(self, key: object) -> NoReturn:
        """Raise TypeError: a loader is no dataset."""
        raise TypeError(
            "a loader has no items: iterate over it. It replaces a DataLoader; do not wrap it in one, which would divide its "
            "batches among processes once more"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Return an iterator over one epoch. It has no effect on the loader before its first `next`."""
        self._check_process()
        return Epoch(self._bind, self._lock, self._check_process)

    @property
    def dataset(self) -> NoReturn:  # absent, as trainers that find one would divide its samples among the processes
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute 'dataset'; loader.num_samples is the number of samples, "
            "loader.index has their labels"
        )

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next to be iterated, and end the iteration that has begun.

        The epoch of a loaded state is entered where the state was saved, every other one at its start.
        """
        check_int("epoch", epoch, 0, 2**64 - 1)
        self._check_process()
        with self._lock:
            self._stop_running()
            self._tracker.set_epoch(int(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the run, a small JSON-serialisable dict.

        It counts the batches that were handed out, not those prepared ahead; after an epoch's last batch it is the start of the
        next epoch. At the same step it is the same in every process. With last_batch="partial", save that of rank 0, which has at
        least as many steps as any other process.
        """
        self._check_process()
        with self._lock:
            self._ranks.for_answer()
            position = self._tracker.position
        return states.save(self.context, position)

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Resume with exactly the batches that remained when `state` was saved. The number of processes may differ.

        Without mixing, `batch_size` may differ too: samples, crops and flips are those of their positions.

        Args:
            state: a dict from `state_dict`.
            strict: if False, accept a state of another data set, seed or configuration, with a warning that names the fields.
                This loader's epoch then continues after as many samples as the state had handed out. If only `batch_size`
                differs, order, crops and weights stay the same and partners change.

        Raises:
            StateMismatchError: `state` is not a state, or (if `strict`) differs from this loader; the message names the fields.
        """
        self._check_process()
        position = states.restore(self.context, state, strict=strict)
        with self._lock:
            self._stop_running()
            self._tracker.restore(position)

    def check_ranks(self) -> None:
        """Check that all processes of torch.distributed have the same data, settings, position and class names. Call it in all.

        This is the only method that communicates. Without torch.distributed there is nothing to compare, and a loader that is one
        of several processes raises ConfigError.

        Raises:
            ConfigError: the processes differ; the message names the first difference and the processes.
        """
        self._check_process()
        with self._lock:
            world, position = self._ranks.for_epoch(), self._tracker.position
        check_ranks(self.context, world, position)

    def close(self) -> None:
        """Stop all threads and free files and device memory. Iterating again reopens what it needs.

        In a forked child this does nothing, because the threads belong to its parent.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._stop_running()
            if self._executor is not None:
                self._executor_stats = self._executor.stats()
                self._executor.close()
                self.context.reader.close()
            self._executor = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a loader holds threads and open files, and cannot be copied or sent to another process. Open one in that process"
        )

    def __repr__(self) -> str:
        c, world = self.context.config, self.world
        return (
            f"Loader({self.num_samples} samples, batch_size={c.batch_size}, mix={c.mix}, "
            f"backend={self.backend!r}, device={str(self.device)!r}, rank {world.rank} of {world.size})"
        )

    def _schedule(self, world: World, start: int) -> Schedule:
        c = self.context.config
        return Schedule(self.num_samples, c.batch_size, world.size, world.rank, c.last_batch, start)

    def _bind(self, running: Epoch) -> Generator[Batch, None, None]:
        """Enter the next epoch for `running`, and end the iteration before it. The caller holds the lock."""
        world = self._ranks.for_epoch()
        self._stop_running()
        entry, schedule = self._tracker.bind(partial(self._schedule, world))
        self._running = weakref.ref(running)
        return self._batches(world, entry, schedule)

    def _batches(self, world: World, entry: Position, schedule: Schedule) -> Generator[Batch, None, None]:
        stats = self._stats = IterationStats(NOTHING_DONE if self._executor is None else self._executor.stats())
        plan = self.context.plan.ordered_for(entry.order_batch_size)
        before = world.rank * self.context.config.batch_size  # rows of the same step in the processes of lower rank
        steps = (plan.step(entry.epoch, first, stop, first - before) for first, stop in schedule)
        with explain_out_of_memory(self.context.config, self.device):
            if self._executor is None:
                self._context = replace(self._context, local_world_size=processes_here(world))
                self._executor = make_executor(self._context)
            with closing(self._executor.run(steps)) as executed:
                for step in executed:
                    batch = self._batch(step)
                    self._tracker.count_batch()  # only now: a batch that failed above was not handed out
                    stats.hand_out(len(step.step))
                    yield batch
                    stats.ask()
        self._tracker.finish()

    def _batch(self, executed: ExecutedStep) -> Batch:
        index, config, step = self.context.index, self.context.config, executed.step
        labels, mix = executed.tensors.labels, executed.tensors.mix
        targets: torch.Tensor | PairTargets = labels
        if mix is not None and config.targets == "pairs":
            targets = pair_targets(labels, mix.partner, mix.lam)
        elif mix is not None:
            targets = mix_targets(labels, mix.partner, mix.lam, config.num_classes)
        elif step.crops_each:
            targets = labels.repeat_interleave(step.crops, dim=0)
        return Batch(executed.images, targets, labels, step, PackedKeys.of(index, step.sample))

    def _stop_running(self) -> None:
        """End the current iteration. The caller holds the lock."""
        if self._running is not None and (epoch := self._running()) is not None:
            epoch.end(done=self._tracker.done)
        self._running = None

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigError(
                f"a loader must be used in the process that opened it ({self._pid}); this is a forked child ({os.getpid()}). "
                "Open the loader in the child"
            )
