"""A state taken at any step continues the run to the bit, or is refused by the name of what differs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.backends import BACKENDS, dali_missing, needs_dali
from helpers.batches import PLAN_COLUMNS, Open, all_same, fingerprint, resumed, same_batch, until_epoch
from helpers.forks import Forks
from helpers.samples import BAD, TINY, WHOLE, N
from multimix_pipe import Batch, EvalTransform, Loader, MultiMix, StateMismatchError

STEPS = 12
"""Of an epoch: the last batch of 9 wraps around."""
SMALL: dict[str, Any] = {"batch_size": 9, "transform": TINY, "prefetch": 3}


@pytest.fixture
def shards(small_shards: Path) -> Path:
    return small_shards


@dataclass(frozen=True)
class Run:
    """Two uninterrupted epochs, and the state before the first step and after each."""

    batches: list[Batch]
    states: list[tuple[int, dict[str, Any]]]
    """(number of batches handed out, state)."""


def uninterrupted(loader: Loader) -> Run:
    run = Run([], [(0, loader.state_dict())])
    for _ in range(2):
        for batch in loader:
            run.batches.append(batch)
            run.states.append((len(run.batches), loader.state_dict()))
        assert loader.state_dict() == run.states[-1][1], "the last step is the epoch's end, noticed or not"
    loader.close()
    return run


def as_in_the_readme(loader: Loader, epochs: int) -> list[Batch]:
    batches = []
    for epoch in range(loader.state_dict()["epoch"], epochs):
        loader.set_epoch(epoch)
        batches += loader
    return batches


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("shuffle", ["global", "window", "none"])
def test_resume_is_exact_after_every_step(opened: Open, backend: str, shuffle: str, k: int) -> None:
    options = SMALL | {"backend": backend, "shuffle": shuffle, "mix": MultiMix(k=k)}
    run = uninterrupted(opened(**options))
    assert len(run.batches) == 2 * STEPS
    for done, state in run.states[: STEPS + 1]:
        with resumed(opened, state, **options) as again:
            assert again.state_dict() == state
            assert len(again) == STEPS
            assert all_same(as_in_the_readme(again, 2), run.batches[done:]), done


VARIANTS: dict[str, dict[str, object]] = {
    "partial": {"last_batch": "partial"},
    "drop": {"last_batch": "drop"},
    "one step": {"batch_size": 64, "last_batch": "drop"},
    "less than a batch": {"batch_size": 150},
    "weights": {"weights": np.arange(100) % 5},
    "a subset": {"samples": [f"png-{number:03d}" for number in range(5, 94, 9)], "batch_size": 4},
    "pairs": {"targets": "pairs"},
    "plain images": {"expand": False},
    "float16": {"dtype": "float16", "channels_last": True},
    "weights of a batch": {"mix": MultiMix(k=2, lam_per="batch", sampling="stratified", prob=0.5), "batch_size": 11},
    "evaluation": {"transform": EvalTransform(size=8), "mix": None},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact_after_every_step_in_every_variant(opened: Open, backend: str, variant: str) -> None:
    options = SMALL | {"backend": backend, "mix": MultiMix(k=2)} | VARIANTS[variant]
    run = uninterrupted(opened(**options))
    for done, state in run.states[: len(run.states) // 2 + 1]:
        with resumed(opened, state, **options) as again:
            assert all_same(until_epoch(again, 2), run.batches[done:]), done


def test_resume_is_exact_after_every_step_where_bad_samples_were_replaced(
    opened: Open, bad_shards: Path, backend: str
) -> None:
    options = SMALL | {"backend": backend, "transform": WHOLE, "on_bad_sample": "replace", "mix": MultiMix(k=2)}
    loader = opened(bad_shards, **options)
    run = uninterrupted(loader)
    assert {name.split(" : ")[1] for name in loader.bad_samples} == BAD
    for done, state in run.states[: STEPS + 1]:
        with opened(bad_shards, **options) as again:
            again.load_state_dict(state)
            assert all_same(until_epoch(again, 2), run.batches[done:]), done


def test_a_loader_that_runs_already_can_be_put_back_to_any_step(opened: Open, backend: str) -> None:
    options = SMALL | {"backend": backend}
    run = uninterrupted(opened(**options))
    again = opened(**options)
    for place in np.random.default_rng(0).permutation(len(run.states) - 1).tolist():
        done, state = run.states[place]
        again.load_state_dict(json.loads(json.dumps(state)))
        iterator = iter(again)
        for expected in run.batches[done : done + 2][: STEPS - done % STEPS]:
            assert same_batch(next(iterator), expected)


def test_a_resumed_run_can_be_resumed_at_every_step_again(opened: Open, backend: str) -> None:
    options = SMALL | {"backend": backend, "batch_size": 20}
    run = uninterrupted(opened(**options))
    for done, state in run.states[:6]:
        with resumed(opened, state, **options) as second:
            for more, batch in enumerate(second, start=1):
                assert second.state_dict() == run.states[done + more][1]
                with resumed(opened, second.state_dict(), **options) as third:
                    assert same_batch(batch, run.batches[done + more - 1])
                    assert all_same(until_epoch(third, 2), run.batches[done + more :]), (done, more)


@needs_dali
@pytest.mark.parametrize(("giver", "taker"), [("dali", "torch"), ("torch", "dali")])
def test_a_state_of_one_backend_continues_in_the_other_after_every_step(opened: Open, giver: str, taker: str) -> None:
    given, expected = (uninterrupted(opened(**SMALL, backend=backend)) for backend in (giver, taker))
    for theirs, own in zip(given.batches, expected.batches, strict=True):
        assert all(np.array_equal(getattr(theirs.plan, name), getattr(own.plan, name)) for name in PLAN_COLUMNS)
        assert theirs.keys == own.keys
    assert given.states == expected.states
    for done, state in given.states[: STEPS + 1]:
        with resumed(opened, state, **SMALL, backend=taker) as again:
            assert all_same(until_epoch(again, 2), expected.batches[done:]), done


def test_a_new_process_continues_the_run_and_another_one_continues_that(
    opened: Open, shards: Path, forks: Forks
) -> None:
    runs, jobs = [], []
    for backend in BACKENDS if dali_missing() is None else ("torch",):
        for shuffle in ("global", "window", "none"):
            for k in (1, 5):
                options = {"backend": backend, "shuffle": shuffle, "batch_size": 9, "prefetch": 3}
                run = uninterrupted(opened(**options, transform=TINY, mix=MultiMix(k=k)))
                for done, state in (run.states[place] for place in (0, 5, STEPS)):
                    runs.append([fingerprint(batch) for batch in run.batches[done:]])
                    jobs.append({"options": options, "k": k, "state": state})
    halfway = forks.run("resume", shards=str(shards), jobs=jobs, batches=2)
    jobs = [job | {"state": done["state"]} for job, done in zip(jobs, halfway, strict=True)]
    ended = forks.run("resume", shards=str(shards), jobs=jobs, batches=None)
    assert [first["batches"] + rest["batches"] for first, rest in zip(halfway, ended, strict=True)] == runs
    assert {len(first["batches"]) for first in halfway} == {2}


def test_a_state_is_a_few_numbers(opened: Open) -> None:
    loader = opened(backend="torch")
    next(iter(loader))
    text = json.dumps(loader.state_dict())
    assert len(text) < 1200
    assert json.loads(text) == loader.state_dict()


def test_a_state_counts_what_was_handed_out_not_what_ran_ahead(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, prefetch=4)
    iterator = iter(loader)
    for done in range(1, 4):
        next(iterator)
        assert loader.state_dict()["samples"] == done * 8
    assert loader.state_dict() == loader.state_dict()


def test_a_batch_that_fails_on_its_way_out_is_not_counted(
    opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SMALL | {"backend": backend}
    run, loader = uninterrupted(opened(**options)), opened(**options)
    iterator = iter(loader)
    next(iterator), next(iterator)
    with monkeypatch.context() as patch:
        patch.setattr("multimix_pipe.loader.loader.mix_targets", lambda *arguments: {}[0])  # as where memory is short
        with pytest.raises(KeyError):
            next(iterator)
    assert loader.state_dict() == run.states[2][1]
    loader.load_state_dict(loader.state_dict())
    assert all_same(until_epoch(loader, 2), run.batches[2:])


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
    "mix": {"mix": None},
    r"mix\.k": {"mix": MultiMix(k=3)},
    r"transform\.size": {"transform": TINY},
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
    data = "^data: this loader has 75 samples in 3 shards, the state has 100 samples in 4 shards; "
    found = data + "subset: this loader has 75 samples in use, the state has 100 samples in use\\. "
    with pytest.raises(StateMismatchError, match=found):
        other.load_state_dict(state)
    with pytest.raises(
        StateMismatchError, match=r"^version: this loader reads states of version 2; found 1, .*set_epoch$"
    ):
        other.load_state_dict(state | {"version": 1})
    with pytest.raises(StateMismatchError, match="ints >= 0"):
        other.load_state_dict(other.state_dict() | {"samples": -1})


def test_without_strict_what_differs_is_named_and_the_epoch_goes_on(
    opened: Open, own_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = opened(backend="torch")
    loader.set_epoch(2)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    (own_shards / "set-003.tar").unlink()
    other = opened(own_shards, backend="torch", seed=5, mix=MultiMix(alpha=0.2))
    with pytest.raises(StateMismatchError, match=r"^data: .*; subset: .*; seed: .*; mix\.alpha: .*strict=False"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    for named in (
        "data: ",
        "subset: ",
        "seed: this loader has 5, the state has 0",
        "mix.alpha: this loader has 0.2, the",
    ):
        assert named in caplog.text
    assert "shuffle" not in caplog.text
    whole = opened(own_shards, backend="torch", seed=5, mix=MultiMix(alpha=0.2))
    whole.set_epoch(2)
    assert all(map(same_batch, other, list(whole)[3:]))
    last = opened(backend="torch")
    last.load_state_dict(state | {"samples": 10_000}, strict=False)
    assert list(last) == [], "an epoch that is over"
    assert next(iter(last)).plan.epoch == 3


@pytest.mark.parametrize("shuffle", ["global", "window", "none"])
def test_two_processes_of_32_go_on_as_one_of_64_where_nothing_is_mixed(
    opened: Open, backend: str, shuffle: str
) -> None:
    """And back, in the next epoch too."""
    options: dict[str, Any] = {"backend": backend, "transform": TINY, "mix": None, "shuffle": shuffle}
    two = [opened(**options, batch_size=16, rank=rank, world_size=2) for rank in range(2)]
    running = [iter(loader) for loader in two]
    for iterator in running:
        next(iterator)
    one = resumed(opened, two[0].state_dict(), **options, batch_size=32)
    expected = [list(zip(*pairs, strict=True)) for pairs in (running, two)]
    for pairs, batches in zip(expected, (list(one), list(one)), strict=True):
        for (first, second), batch in zip(pairs, batches, strict=True):
            assert batch.keys == first.keys + second.keys
            for name in ("window", "flip"):
                parts = [getattr(part.plan, name) for part in (first, second)]
                assert np.array_equal(getattr(batch.plan, name), np.concatenate(parts))
            assert batch.images.equal(torch.cat([first.images, second.images]))
    back = resumed(opened, one.state_dict(), **options, batch_size=16, world_size=2)
    assert next(iter(back)).keys == next(iter(two[0])).keys


def test_another_batch_size_where_samples_are_mixed_is_refused_with_the_reason(opened: Open) -> None:
    state = opened(backend="torch", batch_size=9).state_dict()
    reason = r"^batch_size: this loader has 8, the state has 9 \(partners come from the same batch.*strict=False$"
    with pytest.raises(StateMismatchError, match=reason):
        opened(backend="torch").load_state_dict(state)


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
