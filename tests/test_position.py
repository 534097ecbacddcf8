"""Where an iteration starts, what a state says, and what `len` counts: every sequence of calls agrees with a short model."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, product
from typing import Any

import numpy as np
import pytest
import torch

from helpers.batches import Open
from helpers.samples import CLASSES, TINY, N
from multimix_pipe import Batch, Loader, MultiMixError
from multimix_pipe.config import LastBatch
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.context import ExecutedStep, LoaderContext
from multimix_pipe.runtime.stats import NOTHING_DONE, ExecutorStats

LAST_BATCHES: tuple[LastBatch, ...] = ("wrap", "drop", "partial")
STEPS = {"wrap": 4, "drop": 3, "partial": 4}
"""Steps of an epoch of 100 samples in batches of 30."""
SMALL: dict[str, Any] = {"backend": "torch", "batch_size": 30, "transform": TINY, "mix": None, "num_threads": 1}


def place(batch: Batch) -> tuple[int, int]:
    """Epoch and step of a batch of one process."""
    return batch.plan.epoch, batch.plan.start // 30


@dataclass
class Model:
    """The contract as a few lines of Python; `batches` of an epoch are numbers from 0."""

    steps: int
    wanted: tuple[int, int] | None = (0, 0)
    """What the last set_epoch or load_state_dict asked for, until an iteration begins."""
    restored: tuple[int, int] | None = None
    epoch: int = -1
    next_step: int = 0
    running: int | None = None
    """Number of the iterator that has begun and was not ended."""
    begun: set[int] = field(default_factory=set)
    complete: set[int] = field(default_factory=set)
    """Iterators whose epoch handed out its last batch."""

    def position(self) -> tuple[int, int]:
        if self.wanted is not None:
            return self.wanted
        return (self.epoch + 1, 0) if self.next_step == self.steps else (self.epoch, self.next_step)

    def set_epoch(self, epoch: int) -> None:
        self.running = None
        self.wanted = self.restored if self.restored is not None and self.restored[0] == epoch else (epoch, 0)

    def load(self, state: tuple[int, int]) -> None:
        self.running, self.wanted, self.restored = None, state, state

    def next(self, iterator: int) -> tuple[int, int] | str:
        if iterator not in self.begun:
            self.begun.add(iterator)
            self.running = iterator
            self.epoch, self.next_step = self.wanted or (self.epoch + 1, 0)
            self.wanted = None
        elif iterator in self.complete:
            return "over"
        elif iterator != self.running:
            return "error"
        self.next_step += 1
        if self.next_step == self.steps:
            self.complete.add(iterator)
        return self.epoch, self.next_step - 1


def taken(iterator: Iterator[Batch]) -> tuple[int, int] | str:
    try:
        return place(next(iterator))
    except StopIteration:
        return "over"
    except MultiMixError as error:
        return "error" if "one epoch at a time" in str(error) else str(error)


class Both:
    """A loader and the model, to which the same is done."""

    def __init__(self, loader: Loader, steps: int) -> None:
        self.loader, self.model = loader, Model(steps)
        self.iterators: list[Iterator[Batch]] = []
        self.states: list[tuple[dict[str, Any], tuple[int, int]]] = []

    def iter(self) -> None:
        self.iterators.append(iter(self.loader))

    def next(self, newest: bool = True) -> None:
        if self.iterators:
            number = len(self.iterators) - 1 if newest else 0
            assert taken(self.iterators[number]) == self.model.next(number)

    def epoch(self) -> None:
        """A `for` loop."""
        self.iter()
        while (found := taken(self.iterators[-1])) != "over":
            assert found == self.model.next(len(self.iterators) - 1)
        assert self.model.next(len(self.iterators) - 1) == "over"

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)
        self.model.set_epoch(epoch)

    def save(self) -> None:
        self.states.append((json.loads(json.dumps(self.loader.state_dict())), self.model.position()))

    def load(self) -> None:
        if self.states:
            state, expected = self.states[-1]
            self.loader.load_state_dict(state)
            self.model.load(expected)

    def check(self) -> None:
        state, (epoch, step) = self.loader.state_dict(), self.model.position()
        assert (state["epoch"], state["samples"], state["steps"]) == (epoch, 30 * step, step)
        assert self.loader.steps_done == step
        assert len(self.loader) == self.model.steps


ACTIONS: dict[str, Callable[[Both], object]] = {
    "iter": Both.iter,
    "next": Both.next,
    "next of the first": lambda both: both.next(newest=False),
    "epoch": Both.epoch,
    "set_epoch(1)": lambda both: both.set_epoch(1),
    "set_epoch(2)": lambda both: both.set_epoch(2),
    "save": Both.save,
    "load": Both.load,
}


class PlansOnly:
    """An executor of batches without pixels."""

    def __init__(self, context: LoaderContext) -> None:
        self._context = context

    def run(self, steps: Iterable[StepPlan]) -> Generator[ExecutedStep, None, None]:
        for step in steps:
            yield ExecutedStep(step, torch.empty(len(step), 0), self._context.tensors(step))

    def stats(self) -> ExecutorStats:
        return NOTHING_DONE

    def close(self) -> None:
        """Do nothing."""


def do(loader: Loader, start: dict[str, Any], steps: int, names: Iterable[str]) -> None:
    """Take a run from its start through some actions, beside the model."""
    loader.load_state_dict(start)
    both = Both(loader, steps)
    both.model.load((0, 0))
    for name in names:
        ACTIONS[name](both)
        both.check()


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
def test_any_sequence_of_calls_gives_what_the_contract_says(opened: Open, last_batch: LastBatch) -> None:
    """All sequences of three calls, and 60 random ones of 25."""
    context = opened(**SMALL, last_batch=last_batch).context
    loader = Loader(context, PlansOnly(context))
    start, rng = loader.state_dict(), np.random.default_rng(0)
    frequent = np.array([3, 8, 2, 1, 1, 1, 2, 2]) / 20
    random = (rng.choice(list(ACTIONS), size=25, p=frequent).tolist() for _ in range(60))
    for names in chain(product(ACTIONS, repeat=3), random):
        try:
            do(loader, start, STEPS[last_batch], names)
        except AssertionError as error:
            raise AssertionError(f"after {list(names)}") from error


def test_decoded_batches_follow_the_contract_too(opened: Open, backend: str) -> None:
    rng = np.random.default_rng(1)
    with opened(**SMALL | {"backend": backend}) as loader:
        start = loader.state_dict()
        for _ in range(2):
            do(loader, start, STEPS["wrap"], rng.choice(list(ACTIONS), size=20).tolist())


def test_a_loader_that_was_only_looked_at_or_left_early_goes_on_with_the_next_epoch(opened: Open) -> None:
    loader = opened(**SMALL)
    assert place(next(iter(loader))) == (0, 0), "a look"
    for batch in loader:
        assert place(batch) == (1, 0)
        break
    assert loader.state_dict()["epoch"] == 1
    assert {place(batch)[0] for batch in loader} == {2}


def test_iterators_that_are_never_advanced_count_for_nothing(opened: Open) -> None:
    """Trainers call `iter` twice, and `set_epoch` after it."""
    loader = opened(**SMALL)
    for epoch in range(3):
        first, second = iter(loader), iter(loader)
        loader.sampler.set_epoch(epoch)
        assert [place(batch) for batch in second] == [(epoch, step) for step in range(4)]
    assert place(next(first))[0] == 3


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
def test_a_consumer_that_stops_at_len_ends_each_epoch(opened: Open, last_batch: LastBatch) -> None:
    loader = opened(**SMALL, last_batch=last_batch)
    for epoch in range(3):
        assert loader.state_dict()["epoch"] == epoch
        shown = [place(batch) for batch in islice(loader, len(loader))]
        assert shown == [(epoch, step) for step in range(STEPS[last_batch])]
        state = loader.state_dict()
        assert (state["epoch"], state["samples"], state["steps"]) == (epoch + 1, 0, 0)
        assert loader.steps_done == 0


@pytest.mark.parametrize(("last_batch", "world"), list(product(LAST_BATCHES, (1, 2, 3, 5))))
def test_the_state_after_the_last_step_is_the_next_epoch_for_any_number_of_processes(
    opened: Open, last_batch: LastBatch, world: int
) -> None:
    for rank in range(world):
        with opened(**SMALL | {"batch_size": 7}, last_batch=last_batch, rank=rank, world_size=world) as loader:
            states = [loader.state_dict() for _ in loader]
            steps = len(states)
            begun = [(state["epoch"], state["samples"]) for state in states[:-1]]
            assert begun == [(0, 7 * world * step) for step in range(1, steps)]
            most = -(-N // (7 * world)) if last_batch != "drop" else N // (7 * world)
            last = (1, 0) if steps == most else (0, 7 * world * steps)  # "partial": another process has one step more
            assert (states[-1]["epoch"], states[-1]["samples"]) == last
            assert loader.state_dict()["epoch"] == 1, "its iteration has ended"


def test_a_finished_iterator_stays_finished_after_set_epoch(opened: Open) -> None:
    loader = opened(**SMALL)
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    loader.set_epoch(1)
    assert next(iterator, None) is None


def test_len_counts_the_steps_before_a_resume_and_steps_done_tells_them(opened: Open) -> None:
    first = opened(**SMALL | {"batch_size": 5}, world_size=2, last_batch="wrap")
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    again = opened(**SMALL | {"batch_size": 5}, world_size=1)
    again.load_state_dict(first.state_dict())
    assert (again.steps_done, len(again)) == (3, 3 + 14)
    for done, _ in enumerate(again, start=4):
        assert (again.steps_done, len(again)) == ((done, 17) if done < 17 else (0, 20))


def test_an_epoch_without_steps_is_over_at_once(opened: Open) -> None:
    loader = opened(**SMALL | {"batch_size": 64}, last_batch="drop", world_size=2)
    assert len(loader) == 0
    for epoch in range(3):
        assert loader.state_dict()["epoch"] == epoch
        assert list(loader) == []


def test_a_state_is_loaded_into_a_loader_that_was_iterated_already(opened: Open) -> None:
    loader = opened(**SMALL)
    waiting, iterator = iter(loader), iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    assert {place(batch)[0] for batch in loader} == {1}
    loader.load_state_dict(state)
    assert place(next(waiting)) == (0, 2), "an iterator that has not begun starts at the state"
    with pytest.raises(MultiMixError, match="one epoch at a time"):
        next(iterator)
    loader.set_epoch(0)
    assert place(next(iter(loader))) == (0, 2), "where the epoch was entered"
    loader.set_epoch(1)
    assert place(next(iter(loader))) == (1, 0)


def test_settings_of_a_loader_can_be_read_and_not_changed(opened: Open) -> None:
    loader = opened(**SMALL, last_batch="drop")
    assert (loader.batch_size, loader.drop_last, loader.num_samples) == (30, True, N)
    assert loader.batch_sampler is None
    assert not hasattr(loader, "dataset")
    assert callable(loader.sampler.set_epoch)
    for name in ("transform", "mixup_enabled", "batch_size", "drop_last", "num_samples", "sampler", "dataset"):
        with pytest.raises(AttributeError, match=f"a loader has no attribute '{name}' that can be set.*open_loader"):
            setattr(loader, name, CLASSES)
