"""Another number of processes goes on with the same sequence: no sample is lost or doubled, after whatever step."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.batches import Open, all_same, resumed, until_epoch
from helpers.samples import BAD, TINY, WHOLE, N
from multimix_pipe import Batch, MultiMix
from multimix_pipe.config import LastBatch
from multimix_pipe.plan import Schedule

B = 3
"""34 batches an epoch, the last one of a single sample."""
LAST_BATCHES: tuple[LastBatch, ...] = ("partial", "wrap", "drop")
SMALL: dict[str, Any] = {"backend": "torch", "batch_size": B, "transform": TINY, "mix": MultiMix(k=2), "num_threads": 1}


@pytest.fixture
def shards(small_shards: Path) -> Path:
    return small_shards


Stage = tuple[int, int | None]
"""Processes, and steps that they take; None: all that are left of the epoch."""


def run_stages(
    opened: Open, stages: list[Stage], source: Path | None = None, **options: object
) -> tuple[list[Batch], int]:
    """The batches of one epoch in the order of their positions, as each stage hands its state to the next.

    Stages after the one that ends the epoch do not run; the second value is the number of processes of the last one that did.
    """
    options = SMALL | options | ({} if source is None else {"source": source})
    batches: list[Batch] = []
    state: dict[str, Any] | None = None
    last_world = 0
    for world, steps in stages:
        if state is not None and state["epoch"]:
            break
        last_world = world
        states, shares = [], []
        for rank in range(world):
            with opened(**options, rank=rank, world_size=world) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                    assert loader.state_dict() == state
                done, total = loader.state_dict()["steps"], len(loader)
                shares.append(list(islice(loader, steps)))
                assert done + len(shares[-1]) == total or steps is not None, "len: steps done and remaining"
                states.append(loader.state_dict())
        assert all(other == states[0] for other in states), "the same in every process at the same step"
        state = states[0]
        most = max(map(len, shares))
        batches += [share[step] for step in range(most) for share in shares if step < len(share)]
    return batches, last_world


def check_promise(last_batch: LastBatch, ran: tuple[list[Batch], int], alone: list[Batch]) -> None:
    """Whether `ran`, the batches and the number of processes of the epoch's last part, are what an epoch shows.

    alone: the epoch of one process, under "partial": each sample once.
    """
    batches, last_world = ran
    full = [batch for batch in batches if batch.plan.start + B <= N]
    assert all_same(full, alone[: len(full)])
    left = N - len(full) * B
    if last_batch == "partial":
        assert all_same(batches, alone)
    elif last_batch == "drop":
        assert len(full) == len(batches)
        assert left < B * last_world
    else:
        assert left < B
        order = [key for batch in alone for key in batch.keys]
        found = [key for batch in batches for key in batch.keys]
        assert N <= len(found) < N + B * last_world
        assert found == [order[position % N] for position in range(len(found))]


CHAINS: dict[str, list[Stage]] = {
    "2, 4, 1, 3": [(2, 3), (4, 2), (1, 4), (3, None)],
    "one step each": [(2, 1), (4, 1), (1, 1), (3, None)],
    "some without a step left": [(4, 8), (4, None)],
    "one batch left for four": [(3, 11), (4, None)],
    "none left": [(2, 17), (3, None)],
    "a whole epoch": [(3, None)],
}


CASES = [(last_batch, chain) for last_batch in LAST_BATCHES for chain in CHAINS]
CASES.remove(("drop", "none left"))  # two processes that drop end after 16 steps


@pytest.mark.parametrize(("last_batch", "chain"), CASES)
@pytest.mark.parametrize("shuffle", ["global", "window", "none"])
def test_other_numbers_of_processes_in_mid_epoch_lose_and_double_no_sample(
    opened: Open, last_batch: LastBatch, shuffle: str, chain: str
) -> None:
    alone = list(opened(**SMALL, shuffle=shuffle, last_batch="partial"))
    assert len(alone) == 34
    check_promise(last_batch, run_stages(opened, CHAINS[chain], shuffle=shuffle, last_batch=last_batch), alone)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (2, 4), (4, 3)])
@pytest.mark.parametrize("last_batch", LAST_BATCHES)
def test_the_number_of_processes_may_change_after_every_step(
    opened: Open, last_batch: LastBatch, before: int, after: int
) -> None:
    options = {"mix": None, "last_batch": last_batch}
    alone = list(opened(**SMALL | options | {"last_batch": "partial"}))
    for steps in range(N // (B * before) + 1):
        check_promise(last_batch, run_stages(opened, [(before, steps), (after, None)], **options), alone)


def test_crops_of_each_member_go_on_with_other_processes(opened: Open) -> None:
    options = {"mix": MultiMix(k=2, crops="each"), "last_batch": "partial"}
    alone = list(opened(**SMALL | options))
    check_promise("partial", run_stages(opened, CHAINS["2, 4, 1, 3"], **options), alone)


def test_the_other_backend_takes_over_on_other_processes(opened: Open, backend: str) -> None:
    alone = list(opened(**SMALL | {"backend": backend, "last_batch": "partial"}))
    check_promise("partial", run_stages(opened, CHAINS["2, 4, 1, 3"], backend=backend, last_batch="partial"), alone)


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
@pytest.mark.parametrize("few", [1, 2, 5])
def test_fewer_samples_than_a_step_of_all_processes_takes(
    opened: Open, backend: str, last_batch: LastBatch, few: int
) -> None:
    some = [f"420-{9 * number:03d}" for number in range(few)]
    options = SMALL | {"samples": some, "last_batch": last_batch, "backend": backend}
    shares = []
    for rank in range(4):
        with opened(**options, rank=rank, world_size=4) as loader:
            epochs = [[list(batch.keys) for batch in loader] for _ in range(2)]
            assert len(epochs[0]) == len(epochs[1]) == len(loader)
            shares.append(epochs[0])
    shown = [key for share in shares for keys in share for key in keys]
    expected = {"partial": sorted(some), "drop": [], "wrap": sorted((some * 12)[:12])}
    if last_batch == "wrap" and few == 5:  # each at least twice; which ones come a third time, the order says
        assert {shown.count(key) for key in some} == {2, 3}
        assert len(shown) == 12
    else:
        assert sorted(shown) == expected[last_batch]


def test_weighted_draws_do_not_depend_on_the_number_of_processes(opened: Open) -> None:
    options = {"weights": np.arange(N) % 5, "last_batch": "partial"}
    alone = list(opened(**SMALL, **options))
    check_promise("partial", run_stages(opened, CHAINS["2, 4, 1, 3"], **options), alone)


def test_replacements_of_bad_samples_do_not_depend_on_the_number_of_processes(
    opened: Open, bad_shards: Path, backend: str
) -> None:
    options = {"transform": WHOLE, "on_bad_sample": "replace", "last_batch": "partial", "backend": backend}
    loader = opened(bad_shards, **SMALL | options)
    alone = list(loader)
    assert {name.split(" : ")[1] for name in loader.bad_samples} == BAD
    check_promise("partial", run_stages(opened, CHAINS["2, 4, 1, 3"], bad_shards, **options), alone)


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
def test_the_epoch_after_a_change_is_that_of_any_number_of_processes(opened: Open, last_batch: LastBatch) -> None:
    options = SMALL | {"last_batch": last_batch}
    expected = opened(**SMALL, last_batch="partial")
    expected.set_epoch(1)
    alone = list(expected)
    first = opened(**options, rank=1, world_size=2)
    iterator = iter(first)
    next(iterator), next(iterator)
    shares = []
    for rank in range(3):
        with resumed(opened, first.state_dict(), **options, rank=rank, world_size=3) as loader:
            until_epoch(loader, 1)
            assert loader.state_dict() == opened_at_epoch_one(opened, options)
            assert loader.state_dict()["steps"] == 0
            shares.append(list(loader))
            assert len(shares[-1]) == len(opened(**options, rank=rank, world_size=3))
    batches = [share[step] for step in range(len(shares[0])) for share in shares if step < len(share)]
    check_promise(last_batch, (batches, 3), alone)


def opened_at_epoch_one(opened: Open, options: dict[str, Any]) -> dict[str, Any]:
    loader = opened(**options)
    loader.set_epoch(1)
    return loader.state_dict()


@pytest.mark.parametrize("noticed", [False, True], ids=["at its last batch", "after its last batch"])
def test_states_of_processes_with_a_step_less_than_others_lead_to_the_same_next_epoch(
    opened: Open, noticed: bool
) -> None:
    options = SMALL | {"last_batch": "partial"}
    states = []
    for rank in range(4):  # 34 batches: processes 0 and 1 have nine, 2 and 3 have eight
        with opened(**options, rank=rank, world_size=4) as loader:
            assert len(loader) == (9 if rank < 2 else 8)
            states.append([loader.state_dict() for _ in loader][-1])
            if noticed:
                states[-1] = loader.state_dict()
    if noticed:
        assert all(state == states[0] for state in states)
    for rank, state in enumerate(states):  # each goes on from a state of its own
        with resumed(opened, state, **options, rank=rank, world_size=4) as loader:
            assert until_epoch(loader, 1) == []
            assert next(iter(loader)).plan.start == B * rank
    with resumed(opened, states[0], **options) as loader:  # process 0 has had as many steps as any
        assert until_epoch(loader, 1) == []
    if not noticed:
        with resumed(opened, states[3], **options) as loader:  # the moment at which 0 and 1 still had one to come
            assert [batch.plan.start for batch in until_epoch(loader, 1)] == [96, 99]


def test_set_epoch_keeps_the_place_for_any_number_of_processes(opened: Open) -> None:
    first = opened(**SMALL, rank=0, world_size=2)
    first.set_epoch(5)
    iterator = iter(first)
    next(iterator), next(iterator)
    for rank in range(4):
        with resumed(opened, first.state_dict(), **SMALL, rank=rank, world_size=4) as loader:
            loader.set_epoch(5)
            assert next(iter(loader)).plan.start == (4 + rank) * B
            assert len(loader) == 2 + 8, "30 batches are left: eight steps of four processes"


@pytest.mark.parametrize("last_batch", LAST_BATCHES)
def test_any_sequence_of_numbers_of_processes_covers_the_epoch_as_promised(last_batch: LastBatch) -> None:
    rng = np.random.default_rng(1)
    for _ in range(2000):
        count, batch_size = int(rng.integers(1, 60)), int(rng.integers(1, 6))
        start, positions, world, steps = 0, [], 1, {0}
        for stage in range(4):
            world = int(rng.integers(1, 7))
            parts = [Schedule(count, batch_size, world, rank, last_batch, start) for rank in range(world)]
            taken = min(map(len, parts)) if stage < 3 else max(map(len, parts))
            taken = int(rng.integers(0, taken + 1)) if stage < 3 else taken
            steps = {len(part) for part in parts}
            order = [part.bounds(step) for step in range(taken) for part in parts if step < len(part)]
            positions += [position for bounds in order for position in range(*bounds)]
            start = parts[0].position_after(taken)
        assert positions == list(range(len(positions)))
        round_size = batch_size * world
        if last_batch == "partial":
            assert len(positions) == count
            assert max(steps) - min(steps) <= 1
        elif last_batch == "drop":
            assert count - round_size < len(positions) <= count
            assert len(steps) == 1
        else:
            assert count <= len(positions)
            assert len(steps) == 1
