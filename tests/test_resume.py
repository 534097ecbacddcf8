"""A state taken at any step continues the run to the bit, or is refused by the name of what differs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, N, Open, all_same, keys, needs_dali, resumed

from multimix_pipe import MultiMix, StateMismatchError


def test_resume_is_exact_at_every_step(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, batch_size=20)
    states, batches = [loader.state_dict()], []
    for _ in range(2):
        for batch in loader:
            batches.append(batch)
            states.append(loader.state_dict())
    again = opened(backend=backend, batch_size=20)
    for step, state in enumerate(states[:7]):
        again.load_state_dict(json.loads(json.dumps(state)))
        assert len(again) == 5
        rest = list(again) + list(again)
        if step == 5:  # the state before the epoch's end was noticed: nothing is left of it, then the next one
            assert all_same(rest, batches[5:])
        else:
            assert all_same(rest[: len(batches) - step], batches[step:])


def test_a_state_counts_what_was_handed_out_not_what_ran_ahead(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, prefetch=4)
    iterator = iter(loader)
    for done in range(1, 4):
        next(iterator)
        assert loader.state_dict()["samples"] == done * 8
    assert loader.state_dict() == loader.state_dict()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (2, 3)])
def test_another_number_of_processes_continues_the_same_order(opened: Open, before: int, after: int) -> None:
    options: dict[str, object] = {"backend": "torch", "last_batch": "partial", "batch_size": 7, "transform": TINY}
    order = keys(opened(**options))
    state: dict[str, object] = {}
    for rank in range(before):
        loader = opened(**options, rank=rank, world_size=before)
        iterator = iter(loader)
        next(iterator), next(iterator)
        assert not state or state == loader.state_dict(), "the same in every process"
        state = loader.state_dict()
    done = 2 * 7 * before
    shares = [[b.keys for b in resumed(opened, state, **options, rank=rank, world_size=after)] for rank in range(after)]
    in_order = [shares[batch % after][batch // after] for batch in range(sum(map(len, shares)))]
    assert [key for batch in in_order for key in batch] == order[done:]


def test_set_epoch_keeps_the_position_of_the_restored_epoch_only(opened: Open, backend: str) -> None:
    loader = opened(backend=backend)
    loader.set_epoch(3)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    same, other = resumed(opened, state, backend=backend), resumed(opened, state, backend=backend)
    same.set_epoch(3)
    assert next(iter(same)).plan.start == 8
    other.set_epoch(4)
    assert next(iter(other)).plan.start == 0
    assert len(same) == len(other) == 13


MISMATCHES: dict[str, dict[str, object]] = {
    "seed": {"seed": 1},
    "batch_size": {"batch_size": 9},
    "shuffle": {"shuffle": "none"},
    "last_batch": {"last_batch": "drop"},
    "exif": {"exif": True},
    "mix": {"mix": MultiMix(k=3)},
    "transform": {"transform": TINY},
    "subset": {"exclude": ["420-000"]},
    "on_bad_sample": {"on_bad_sample": "replace"},
}


@pytest.mark.parametrize("field", MISMATCHES)
def test_a_state_of_another_configuration_is_refused_by_name(opened: Open, field: str) -> None:
    state = opened(backend="torch").state_dict()
    with pytest.raises(StateMismatchError, match=rf"^{field}: this loader has .* the state has"):
        opened(backend="torch", **MISMATCHES[field]).load_state_dict(state)


def test_a_state_of_other_data_or_another_version_is_refused(opened: Open, own_shards: Path) -> None:
    state = opened(backend="torch").state_dict()
    (own_shards / "set-003.tar").unlink()
    other = opened(own_shards, backend="torch")
    with pytest.raises(StateMismatchError, match=r"^data: "):
        other.load_state_dict(state)
    with pytest.raises(StateMismatchError, match=r"^version: "):
        other.load_state_dict(state | {"version": 0})
    with pytest.raises(StateMismatchError, match="ints >= 0"):
        other.load_state_dict(other.state_dict() | {"samples": -1})


def test_without_strict_the_batch_size_may_change(opened: Open) -> None:
    loader = opened(backend="torch", shuffle="window", mix=MultiMix(k=2))
    batches = list(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    other = opened(backend="torch", shuffle="window", mix=MultiMix(k=2), batch_size=4)
    with pytest.raises(StateMismatchError, match="strict=False"):
        other.load_state_dict(loader.state_dict())
    other.load_state_dict(loader.state_dict(), strict=False)
    rest = list(other)
    for name in ("sample", "window", "flip", "lam"):
        expected = np.concatenate([getattr(batch.plan, name) for batch in batches[4:]])
        found = np.concatenate([getattr(batch.plan, name) for batch in rest])
        assert np.array_equal(found[: N - 32], expected[: N - 32]), name


@needs_dali
def test_a_state_may_change_its_backend(opened: Open) -> None:
    loader = opened(backend="torch")
    iterator = iter(loader)
    next(iterator)
    found = next(iter(resumed(opened, loader.state_dict(), backend="dali")))
    assert found.keys == next(iterator).keys
