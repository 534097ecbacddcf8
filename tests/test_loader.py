"""The loader's contract: epochs, processes, determinism. Both backends; `test_life_cycle.py` has what ends and breaks."""

from __future__ import annotations

import logging
import random  # noqa: TID251
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.backends import needs_dali
from helpers.batches import Open, all_same
from helpers.samples import SIZE, TINY, N
from multimix_pipe import ConfigError, EvalTransform, MultiMix
from multimix_pipe.runtime import mix_stage


def test_an_epoch_has_len_steps_and_the_next_iter_is_the_next_epoch(opened: Open, backend: str) -> None:
    loader = opened(backend=backend)
    assert loader.backend == backend
    assert len(loader) == 13
    epochs = [[batch.plan.epoch for batch in loader] for _ in range(2)]
    assert epochs == [[0] * 13, [1] * 13]


def test_a_break_ends_an_epoch_and_set_epoch_chooses_one(opened: Open, backend: str) -> None:
    loader = opened(backend=backend)
    whole = list(loader)
    for _ in loader:
        break
    assert next(iter(loader)).plan.epoch == 2
    loader.set_epoch(0)
    assert all_same(list(loader), whole)
    loader.set_epoch(7)
    assert next(iter(loader)).plan.epoch == 7


@pytest.mark.parametrize("epoch", [-1, 1.5, True, 2**64])
def test_an_epoch_is_a_number_from_zero(opened: Open, epoch: object) -> None:
    with pytest.raises(ConfigError, match="epoch must be an int in \\[0, "):
        opened(backend="torch").set_epoch(epoch)  # type: ignore[arg-type]


def test_an_eval_transform_shows_every_sample_once_in_stored_order(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, transform=EvalTransform(size=16, resize=18), batch_size=30)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [30, 30, 30, 10]
    assert [key for batch in batches for key in batch.keys] == loader.index.keys(range(N))
    for batch in batches:
        assert isinstance(batch.targets, Tensor)
        assert batch.targets.equal(batch.labels)
        assert batch.labels.equal(torch.from_numpy(loader.index.label[batch.plan.sample]))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 150])
def test_processes_cover_the_epoch_as_their_last_batch_says(opened: Open, batch_size: int, world: int) -> None:
    shown: dict[str, Counter[str]] = {}
    steps: dict[str, list[int]] = {}
    for last_batch in ("wrap", "drop", "partial"):
        shown[last_batch], steps[last_batch] = Counter(), []
        for rank in range(world):
            loader = opened(
                backend="torch", batch_size=batch_size, rank=rank, world_size=world, last_batch=last_batch,
                transform=TINY, mix=None,
            )  # fmt: skip
            batches = [batch.keys for batch in loader]
            assert len(batches) == len(loader)
            shown[last_batch].update(key for batch in batches for key in batch)
            steps[last_batch].append(len(batches))
            loader.close()
    assert len(shown["partial"]) == N
    assert set(shown["partial"].values()) == {1}
    assert max(shown["drop"].values(), default=1) == 1
    assert shown["drop"].total() == N // (batch_size * world) * batch_size * world
    assert len(shown["wrap"]) == N
    for last_batch in ("wrap", "drop"):
        assert len(set(steps[last_batch])) == 1
    assert max(steps["partial"]) - min(steps["partial"]) <= 1


def test_processes_share_the_batches_of_one(opened: Open, backend: str) -> None:
    alone = list(opened(backend=backend, last_batch="drop"))
    for rank in range(2):
        share = list(opened(backend=backend, last_batch="drop", rank=rank, world_size=2))
        assert all_same(share, alone[rank : len(share) * 2 : 2])


@pytest.mark.parametrize("batch_size", [1, 3, 150])
def test_any_batch_size_works(opened: Open, backend: str, batch_size: int) -> None:
    loader = opened(backend=backend, batch_size=batch_size, transform=TINY)
    batch = next(iter(loader))
    assert batch.images.shape == (batch_size * 5, 3, 8, 8)
    if batch_size == 1:
        assert (batch.plan.lam == 1).all()
    else:
        assert (batch.plan.partner != np.arange(batch_size)).all()


@pytest.mark.parametrize("pairing", ["derangement", "roll", "flip"])
def test_every_pairing_works_with_an_odd_batch(opened: Open, backend: str, pairing: str) -> None:
    batch = next(iter(opened(backend=backend, batch_size=5, mix=MultiMix(k=2, pairing=pairing))))  # type: ignore[arg-type]
    assert batch.images.shape == (10, 3, SIZE, SIZE)


@pytest.mark.parametrize("options", [{"num_threads": 1}, {"num_threads": 3, "prefetch": 1}, {"prefetch": 40}])
def test_threads_and_prefetch_change_nothing(opened: Open, backend: str, options: dict[str, int]) -> None:
    settings = {"backend": backend, "batch_size": 25}
    expected, loader = opened(**settings), opened(**settings, **options)
    for _ in range(2):
        assert all_same(list(loader), list(expected))


def test_epochs_of_one_step(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, batch_size=6, samples=["420-000", "444-001", "gray-003"], prefetch=3)
    for epoch in range(4):
        (batch,) = list(loader)
        assert batch.plan.epoch == epoch
        assert sorted(Counter(batch.keys).values()) == [2, 2, 2]


def test_global_random_state_is_left_alone(opened: Open, backend: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr] # noqa: NPY002
    next(iter(opened(backend=backend)))
    assert torch.get_rng_state().equal(torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index] # noqa: NPY002


def test_global_random_state_changes_nothing(opened: Open, backend: str) -> None:
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        loader = opened(backend=backend)
        runs.append([*loader, *loader])
    assert all_same(*runs)


@needs_dali
def test_auto_takes_dali_and_says_so(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "multimix_pipe"):
        assert opened(backend="auto").backend == "dali"
    assert "100 samples, backend dali on cpu, process 0 of 1, 2 threads" in caplog.text


@pytest.fixture
def other_defaults() -> Iterator[None]:
    """Within it torch makes float64 tensors without memory, unless told otherwise."""
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("without_numba", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"expand": False}, {"targets": "pairs", "dtype": "float16"}, {"mix": None}], ids=str
)
def test_torchs_default_device_and_dtype_have_no_influence(
    opened: Open,
    backend: str,
    options: dict[str, object],
    without_numba: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if without_numba:
        monkeypatch.setattr(mix_stage, "host_kernel", lambda: None)
    settings: dict[str, object] = {"backend": backend, "mix": MultiMix(k=2), **options}
    expected = list(opened(**settings))
    request.getfixturevalue("other_defaults")
    found = list(opened(**settings))
    assert all(batch.images.device.type == "cpu" for batch in found)
    assert all_same(found, expected)
