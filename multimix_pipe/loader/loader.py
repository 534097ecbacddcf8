"""`Loader`, an iterable of batches whose position can be saved, restored and moved."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, NoReturn

import torch

from multimix_pipe.batch import Batch, PairTargets
from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.loader import state as states
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.loader.epoch import Epoch, close_at_exit
from multimix_pipe.loader.memory import explain_out_of_memory
from multimix_pipe.loader.state import Position
from multimix_pipe.plan import Schedule
from multimix_pipe.runtime.context import ExecutedStep, Executor, LoaderContext
from multimix_pipe.shards.index import Index
from multimix_pipe.training.targets import mix_targets, pair_targets

logger = logging.getLogger("multimix_pipe")


class Loader:
    """An iterable of `Batch`es, one epoch per `iter()`. Use `open_loader` to make one.

        loader.load_state_dict(checkpoint["loader"])  # resume, at any step
        for epoch in range(loader.state_dict()["epoch"], epochs):
            for images, targets in loader:
                ...
                checkpoint["loader"] = loader.state_dict()

    Each `iter(loader)` starts the next epoch and ends the previous iteration, which is an error to continue. Threads may share a
    loader and its iterator; their calls take turns. A loader belongs to the process that opened it: it cannot be pickled, and a
    forked child cannot use it. `close`, or leaving a `with` block, frees its threads, files and device memory.
    """

    def __init__(self, context: LoaderContext, executor: Executor | None = None) -> None:
        """Make a loader from its parts. `executor` replaces the backend's own one, for tests and benchmarks."""
        config, count = context.config, len(context.plan.samples)
        self.context = context
        """The parts of this loader. Not part of the public API."""
        self._pid = os.getpid()
        # guards everything below; acquired after `_check_process`, because a forked child may inherit it locked
        self._lock = threading.RLock()
        self._executor = executor
        # weak, so that dropping the iterator stops its read-ahead and the loader is in no reference cycle
        self._running: weakref.ref[Epoch] | None = None
        # where the epoch starts: at its beginning, or where a state resumed it
        self._entry = Position(0, 0, 0, config.batch_size)
        self._handed = 0  # steps handed out since `_entry`
        self._entered = False  # whether the epoch has been iterated over
        self._restored = False  # whether `_entry` comes from a state
        close_at_exit(self)
        if config.last_batch == "drop" and not len(self):
            logger.warning(
                'an epoch has no steps: %d samples are fewer than batch_size times world_size, and last_batch="drop"',
                count,
            )
        logger.info(
            "%d samples, backend %s on %s, process %d of %d, %d threads",
            *(count, context.backend, context.device, config.rank, config.world_size, config.num_threads),
        )

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
    def index(self) -> Index:
        """The index of the shards: labels, image sizes and keys of all samples."""
        return self.context.index

    @property
    def bad_samples(self) -> dict[str, str]:
        """The bad samples replaced so far, as a dict from `shard.tar : key` to what is wrong."""
        return self.context.bad_samples.reasons

    def __len__(self) -> int:
        """Return the steps of the epoch in this process; after a resume in mid-epoch, steps done plus steps remaining."""
        self._check_process()
        with self._lock:
            return self._entry.steps + len(self._schedule())

    def __iter__(self) -> Iterator[Batch]:
        self._check_process()
        with self._lock:
            self._stop_running()
            if self._entered:
                self._enter(self._entry.epoch + 1)
            self._entered, self._handed, self._restored = True, 0, False
            running = Epoch(self._batches(), self._lock, self._check_process)
            self._running = weakref.ref(running)
            return running

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next to be iterated: from its start or, if a loaded state lies in it, from the state's position."""
        check_int("epoch", epoch, 0, 2**64 - 1)
        self._check_process()
        with self._lock:
            self._stop_running()
            if not (self._restored and epoch == self._entry.epoch):
                self._enter(int(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the run, a small JSON-serialisable dict.

        It counts the batches that were handed out, not those prepared ahead. At the same step it is the same in every process.
        With last_batch="partial", save that of rank 0, which has at least as many steps as any other process.
        """
        self._check_process()
        with self._lock:
            handed = self._schedule().position_after(self._handed)
            entry = self._entry
            position = Position(entry.epoch, handed, entry.steps + self._handed, entry.order_batch_size)
        return states.save(self.context, position)

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Resume with exactly the batches that remained when `state` was saved. The number of processes may differ.

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
            self._enter(position.epoch)
            self._entry, self._restored = position, True

    def close(self) -> None:
        """Stop all threads and free files and device memory. Iterating again reopens what it needs.

        In a forked child this does nothing, because the threads belong to its parent.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._stop_running()
            if self._executor is not None:
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
        c = self.context.config
        return (
            f"Loader({len(self.context.plan.samples)} samples, batch_size={c.batch_size}, mix={c.mix}, "
            f"backend={self.backend!r}, device={str(self.device)!r}, rank {c.rank} of {c.world_size})"
        )

    def _enter(self, epoch: int) -> None:
        self._entry, self._handed = Position(epoch, 0, 0, self.context.config.batch_size), 0
        self._entered = self._restored = False

    def _schedule(self) -> Schedule:
        c, count = self.context.config, len(self.context.plan.samples)
        return Schedule(count, c.batch_size, c.world_size, c.rank, c.last_batch, self._entry.samples)

    def _batches(self) -> Generator[Batch, None, None]:
        context, epoch = self.context, self._entry.epoch
        plan = context.plan.ordered_for(self._entry.order_batch_size)
        steps = (plan.step(epoch, first, stop) for first, stop in self._schedule())
        with explain_out_of_memory(context.config, context.device):
            if self._executor is None:
                self._executor = make_executor(context)
            with closing(self._executor.run(steps)) as executed:
                for step in executed:
                    batch = self._batch(step)
                    self._handed += 1  # only now: a batch that failed above was not handed out
                    yield batch
        self._enter(epoch + 1)

    def _batch(self, executed: ExecutedStep) -> Batch:
        index, config, step = self.context.index, self.context.config, executed.step
        labels, mix = executed.tensors.labels, executed.tensors.mix
        targets: torch.Tensor | PairTargets = labels
        if mix is not None and config.targets == "pairs":
            targets = pair_targets(labels, mix.partner, mix.lam)
        elif mix is not None:
            targets = mix_targets(labels, mix.partner, mix.lam, config.num_classes)
        return Batch(executed.images, targets, labels, step, lambda: index.keys(step.sample))

    def _stop_running(self) -> None:
        """End the current iteration. The caller holds the lock."""
        if self._running is not None and (epoch := self._running()) is not None:
            epoch.end()
        self._running = None

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigError(
                f"a loader must be used in the process that opened it ({self._pid}); this is a forked child ({os.getpid()}). "
                "Open the loader in the child"
            )
