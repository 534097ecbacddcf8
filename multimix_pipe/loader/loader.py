"""`Loader`: an iterable of batches with a position that can be saved, restored and moved."""

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
from multimix_pipe.loader.memory import memory_explained
from multimix_pipe.loader.state import Position
from multimix_pipe.plan import Schedule
from multimix_pipe.runtime.context import ExecutedStep, Executor, LoaderContext
from multimix_pipe.shards.index import Index
from multimix_pipe.training.targets import mix_targets, pair_targets

logger = logging.getLogger("multimix_pipe")


class Loader:
    """An iterable of `Batch`es; each `iter()` is one epoch, the next one each time. Made by `open_loader`.

    A context manager: leaving it closes it. Threads may share it, and the iteration over it: their calls take turns. It is of
    the process that opened it.
    """

    def __init__(self, context: LoaderContext, executor: Executor | None = None) -> None:
        """`executor`: one to use in place of the backend's own, as tests and benchmarks do."""
        config, count = context.config, len(context.plan.samples)
        self.context = context
        """What this loader is made of; its parts are no public contract."""
        self._pid = os.getpid()
        # of the epoch and what runs; taken after `_check_process`, as a forked child may find it locked
        self._lock = threading.RLock()
        self._executor = executor
        # weak: after a `break` nothing runs ahead, and a loader is in no cycle
        self._running: weakref.ref[Epoch] | None = None
        # where the epoch is entered: at its start, or where a state resumed it
        self._entry = Position(0, 0, 0, config.batch_size)
        self._handed = 0  # steps handed out since then
        self._entered = False  # the epoch has been iterated over
        self._restored = False  # `_entry` comes from a state
        close_at_exit(self)
        if config.last_batch == "drop" and not len(self):
            logger.warning(
                'an epoch has no steps: %d samples are less than batch_size times world_size, and last_batch="drop"',
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
        """Where the batches are."""
        return self.context.device

    @property
    def index(self) -> Index:
        """The shards' index: labels, sizes and keys of all samples."""
        return self.context.index

    @property
    def bad_samples(self) -> dict[str, str]:
        """Bad samples replaced so far: `shard.tar : key` -> what is wrong with it."""
        return self.context.bad_samples.reasons

    def __len__(self) -> int:
        """Steps of the epoch for this process; after a resume in mid-epoch, those done and those remaining."""
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
        """Make `epoch` the next to be iterated: from its start, or, if a loaded state is in it, from that state's position."""
        check_int("epoch", epoch, 0, 2**64 - 1)
        self._check_process()
        with self._lock:
            self._stop_running()
            if not (self._restored and epoch == self._entry.epoch):
                self._enter(int(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, JSON-serialisable: epoch, and the samples handed out in it over all processes.

        The same in every process at the same step; with last_batch="partial" keep that of process 0, which has as many steps as
        any. Batches that ran ahead and were not handed out do not count.
        """
        self._check_process()
        with self._lock:
            handed = self._schedule().position_after(self._handed)
            entry = self._entry
            position = Position(entry.epoch, handed, entry.steps + self._handed, entry.order_batch_size)
        return states.save(self.context, position)

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Continue where `state` was taken; the number of processes may have changed.

        A state of another data set, seed or configuration raises StateMismatchError, which names the fields. With strict=False
        a warning names them instead, and this loader's epoch goes on behind as many samples as the state's had handed out. Where
        `batch_size` alone differs, order, crops and weights stay as they were, and partners change.
        """
        self._check_process()
        position = states.restore(self.context, state, strict=strict)
        with self._lock:
            self._stop_running()
            self._enter(position.epoch)
            self._entry, self._restored = position, True

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
            "a loader holds threads and open files, and cannot be copied or sent to another process. Open it there"
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
        with memory_explained(context.config, context.device):
            if self._executor is None:
                self._executor = make_executor(context)
            with closing(self._executor.run(steps)) as executed:
                for step in executed:
                    batch = self._batch(step)
                    self._handed += 1  # not before: one that fails here was not handed out
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
