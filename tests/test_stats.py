"""Promises of `Loader.stats` and `Loader.denormalize`."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.backends import needs_dali
from helpers.batches import Open
from helpers.images import plain_image
from helpers.samples import TINY
from helpers.tars import write_tar
from multimix_pipe import ConfigError, EvalTransform, MultiMix, open_loader
from multimix_pipe.runtime.stats import ThreadTime

BACKENDS = ["torch", pytest.param("dali", marks=needs_dali)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_stats_tell_where_the_time_of_an_epoch_went(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, batch_size=16, mix=MultiMix(k=3), transform=TINY)
    nothing = loader.stats()
    assert (nothing["images"], nothing["images_per_s"], nothing["wait_s"], nothing["bad"]) == (0, 0, 0, 0)
    began = time.perf_counter()
    for steps, _ in enumerate(loader, start=1):
        time.sleep(0.02)
        stats = loader.stats()
        assert stats["images"] == 16 * steps
    elapsed = time.perf_counter() - began
    assert steps > 4
    seconds = stats["seconds"]
    assert 0.02 * (steps - 1) <= seconds <= elapsed
    assert stats["images_per_s"] == pytest.approx(16 * steps / seconds)
    assert 0 < stats["wait_s"] <= seconds - 0.02 * (steps - 1)  # the loop's own time is not in it
    assert stats["mix_s"] > 0
    if backend == "torch":
        assert stats["decode_s"] > 0
        assert stats["queue"] == 0  # none after the last step
    else:
        assert stats["decode_s"] is stats["queue"] is None
    loader.close()
    assert loader.stats() | {"queue": None} == stats | {"queue": None}, "they outlive the threads"


def test_stats_begin_anew_with_each_iteration_and_see_what_is_ready(opened: Open) -> None:
    loader = opened(backend="torch", batch_size=16, prefetch=2, transform=TINY)
    first = [loader.stats()["decode_s"] for _ in loader][-1]
    iterator = iter(loader)
    next(iterator)
    for _ in range(500):
        if (stats := loader.stats())["queue"] == 2:
            break
        time.sleep(0.01)
    assert stats["queue"] == 2
    assert stats["images"] == 16
    assert first > 0
    assert 0 < stats["decode_s"] <= loader._executor.stats().decode_s - first + 1e-3


def test_a_waiting_iteration_can_be_watched_from_another_thread(opened: Open) -> None:
    loader, seen = opened(backend="torch", batch_size=16, transform=TINY), threading.Event()
    next(iter(loader))
    with loader._lock:  # as while a batch is waited for
        watcher = threading.Thread(target=lambda: loader.stats() and seen.set())
        watcher.start()
        assert seen.wait(20)
    watcher.join()


def test_time_is_summed_over_threads() -> None:
    busy = ThreadTime()
    busy.change(2)
    time.sleep(0.05)
    total = busy.change(-2)
    assert total >= 0.1
    assert busy.seconds == total


@pytest.mark.parametrize("images", [(2, 3, 5, 7), (3, 5, 7)])
def test_denormalize_is_the_inverse_of_the_transform(opened: Open, images: tuple[int, ...]) -> None:
    transform = EvalTransform(size=24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    loader = opened(transform=transform)
    pixels = torch.rand(images)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    torch.testing.assert_close(loader.denormalize((pixels - mean) / std), pixels)
    assert loader.denormalize(((pixels - mean) / std).half()).dtype == torch.float32
    shown = loader.denormalize(next(iter(loader)).images)
    assert 0 <= shown.min() < shown.max() <= 1
    with pytest.raises(ConfigError, match=r"images must be \(\.\.\., 3, H, W\); found \(2, 5, 7, 3\)"):
        loader.denormalize(torch.rand(2, 5, 7, 3))


def test_balanced_weights_show_each_class_equally_often(tmp_path: Path) -> None:
    members = []
    for i in range(60):
        members += [(f"{i}.jpg", plain_image()), (f"{i}.cls", b"0" if i < 50 else b"1" if i < 59 else b"?")]
    shards = write_tar(tmp_path / "x.tar", members)
    options = {"batch_size": 12, "num_classes": 3, "backend": "torch", "transform": TINY}
    loader = open_loader(shards, weights="balanced", on_bad_sample="replace", **options)
    labels = np.concatenate([batch.labels.numpy() for epoch in range(10) for batch in loader])
    assert not loader.bad_samples, "a sample without a label is not drawn"
    assert 0.4 < labels.mean() < 0.6
    again = open_loader(
        shards, weights=1 / np.array([50] * 50 + [9] * 9 + [np.inf]), on_bad_sample="replace", **options
    )
    again.load_state_dict(loader.state_dict())
    with pytest.raises(ConfigError, match='weights must be "balanced" or hold'):
        open_loader(shards, weights="equal", on_bad_sample="replace", **options)
    with pytest.raises(ConfigError, match='weights="balanced" needs labels'):
        open_loader(shards, weights="balanced", label=None, **options)
