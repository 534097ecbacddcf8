"""What a batch is: rows, pairs, chunks, memory that stays what it is; and training with it."""

from __future__ import annotations

import gc
import pickle  # noqa: TID251
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.batches import Open, same_batch
from helpers.samples import CLASSES, SIZE, TINY
from multimix_pipe import Batch, ConfigError, MultiMix, MultiMixLoss, mix_batch, mixed_accuracy, open_loader
from multimix_pipe.training.targets import mix_targets


def test_expand_false_gives_plain_images_with_the_plan(opened: Open, backend: str) -> None:
    mix = MultiMix(k=3)
    plain = next(iter(opened(backend=backend, mix=mix, expand=False)))
    mixed = next(iter(opened(backend=backend, mix=mix)))
    assert plain.images.shape == (8, 3, SIZE, SIZE)
    assert isinstance(plain.targets, Tensor)
    assert plain.targets.equal(plain.labels)
    assert plain.plan.lam.shape == (8, 3)
    assert np.array_equal(plain.plan.lam, mixed.plan.lam)
    assert np.array_equal(plain.plan.partner, mixed.plan.partner)


def test_pairs_are_the_rows_undensified(opened: Open, backend: str) -> None:
    rows, pairs = (next(iter(opened(backend=backend, targets=form))) for form in ("rows", "pairs"))
    assert isinstance(pairs.targets, tuple)
    labels, others, lam = pairs.targets
    assert labels.equal(pairs.labels)
    assert others.equal(labels[torch.from_numpy(pairs.plan.partner)])
    dense = mix_targets(labels, torch.from_numpy(pairs.plan.partner), lam, CLASSES)
    assert dense.equal(rows.targets)  # type: ignore[arg-type]
    logits, loss = torch.randn(40, CLASSES), MultiMixLoss()
    assert torch.allclose(loss(logits, rows.targets), loss(logits, pairs.targets))


@pytest.mark.parametrize("targets", ["rows", "pairs"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 50])
def test_chunks_are_the_batch_in_parts(opened: Open, n: int, targets: str) -> None:
    batch = next(iter(opened(backend="torch", mix=MultiMix(k=3), targets=targets)))
    chunks = list(batch.chunks(n))
    sizes = [len(chunk.labels) for chunk in chunks]
    assert len(chunks) == min(n, 8)
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat([chunk.images for chunk in chunks]).equal(batch.images)
    assert [key for chunk in chunks for key in chunk.keys] == batch.keys
    assert np.array_equal(np.concatenate([chunk.plan.lam for chunk in chunks]), batch.plan.lam)
    for chunk in chunks:
        images, target = chunk
        MultiMixLoss()(torch.randn(len(images), CLASSES), target)


def test_chunks_of_plain_images(opened: Open) -> None:
    batch = next(iter(opened(backend="torch", mix=None)))
    assert [len(chunk.images) for chunk in batch.chunks(3)] == [2, 3, 3]
    with pytest.raises(ConfigError, match="n must be an int >= 1"):
        next(batch.chunks(0))


def test_a_kept_batch_never_changes(opened: Open, backend: str) -> None:
    settings = {"backend": backend, "prefetch": 1, "batch_size": 10}
    kept = list(opened(**settings))
    copies = [batch.images.clone() for batch in opened(**settings)]
    assert all(batch.images.equal(copy) for batch, copy in zip(kept, copies, strict=True))


def test_a_kept_image_outlives_its_batch_and_its_loader(opened: Open, backend: str) -> None:
    for options in ({"mix": None}, {"mix": MultiMix(k=2)}, {"mix": MultiMix(k=2), "channels_last": True}):
        loader = opened(backend=backend, **options)
        iterator = iter(loader)
        row = next(iterator).images[3:4]
        copy = row.clone()
        for _ in range(6):
            next(iterator)
        loader.close()
        del loader, iterator
        gc.collect()
        assert row.equal(copy)


def test_memory_of_dropped_batches_is_used_again(opened: Open, backend: str) -> None:
    addresses: Counter[int] = Counter()
    for batch in opened(backend=backend, batch_size=4):
        addresses[batch.images.data_ptr()] += 1
        del batch
    assert addresses.total() == 25
    assert len(addresses) <= 8


def test_a_training_step_learns_from_a_loaders_batches(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, mix=MultiMix(k=2), last_batch="drop", transform=TINY)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, CLASSES))
    for parameter in model.parameters():  # the test must not depend on chance
        torch.nn.init.zeros_(parameter)
    loss_function, optimiser = MultiMixLoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        losses.append(0.0)
        for images, targets in loader:
            logits = model(images)
            loss = loss_function(logits, targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[-1] += loss.item() / len(loader)
            assert 0 <= mixed_accuracy(logits.detach(), targets) <= 1
    assert losses[-1] < losses[0]


def test_mix_batch_mixes_tensors_of_another_loader() -> None:
    images, labels = torch.rand(6, 3, 4, 4), torch.arange(6)
    batch = mix_batch(images, labels, MultiMix(k=3), num_classes=6, seed=1, step=9)
    own = torch.from_numpy(batch.plan.lam)[:, :, None, None, None]
    expected = own * images[:, None] + (1 - own) * images[batch.plan.partner][:, None]
    assert batch.images.equal(expected.flatten(0, 1))
    assert batch.keys == [str(row) for row in range(6)]
    again = mix_batch(images, labels, MultiMix(k=3), num_classes=6, seed=1, step=9)
    assert batch.images.equal(again.images)
    assert batch.targets.equal(again.targets)  # type: ignore[union-attr, arg-type]
    other = mix_batch(images, labels, MultiMix(k=3), num_classes=6, seed=1, step=10)
    assert not np.array_equal(other.plan.lam, batch.plan.lam)
    assert mix_batch((images * 255).byte(), labels, MultiMix(), num_classes=6, step=0).images.dtype == torch.float32
    assert mix_batch(images.half(), labels, MultiMix(), num_classes=6, step=0).images.dtype == torch.float16
    with pytest.raises(ConfigError, match=r"found images \(6, 3, 4, 4\), labels torch.int64 \(5,\)"):
        mix_batch(images, labels[:5], MultiMix(), num_classes=6, step=0)


def test_a_batch_is_the_pair_of_images_and_targets(opened: Open) -> None:
    batch = next(iter(opened(backend="torch")))
    images, targets = batch
    assert len(batch) == 2
    assert batch[0] is images is batch.images
    assert batch[1] is batch[-1] is targets
    with pytest.raises(IndexError):
        batch[2]
    batch.images = images * 2  # for an augmentation of one's own
    assert batch[0] is not images
    with pytest.raises(AttributeError):
        batch.image = images  # type: ignore[attr-defined]


def test_a_batch_is_shown_in_one_line(opened: Open) -> None:
    batch = next(iter(opened(backend="torch")))
    start = "Batch(images (40, 3, 24, 24) float32 on cpu, targets (40, 7), StepPlan(epoch 0, positions 0 to 7, "
    assert repr(batch) == start + "MixPlan(8 pairs, K=5, mixup)))"
    pairs = next(iter(opened(backend="torch", targets="pairs")))
    assert "targets [(8,), (8,), (8, 5)], " in repr(pairs)
    assert repr(mix_batch(torch.rand(2, 3), torch.arange(2), MultiMix(k=1), num_classes=2, step=0)).count("\n") == 0


@pytest.mark.parametrize("targets", ["rows", "pairs"])
@pytest.mark.parametrize("mix", [MultiMix(k=3), None])
def test_a_batch_survives_pickling(opened: Open, backend: str, mix: MultiMix | None, targets: str) -> None:
    if mix is None and targets == "pairs":
        pytest.skip("there are no pairs without mixing")
    batch = next(iter(opened(backend=backend, mix=mix, targets=targets, channels_last=True)))
    again = pickle.loads(pickle.dumps(batch))
    assert same_batch(again, batch)
    assert again.images.stride() == batch.images.stride()
    assert (again.targets is again.labels) == (batch.targets is batch.labels)
    first, _ = batch.chunks(2)
    assert len(pickle.dumps(first)) < 0.6 * len(pickle.dumps(batch)), "a chunk does not take the whole batch along"
    assert pickle.loads(pickle.dumps(first)).chunk_weight == 0.5
    mixed = mix_batch(torch.rand(4, 3), torch.arange(4), MultiMix(k=2), num_classes=4, step=0)
    assert pickle.loads(pickle.dumps(mixed)).keys == ["0", "1", "2", "3"]


def test_a_batch_moves_as_a_whole(opened: Open) -> None:
    for options in ({"mix": None}, {"targets": "pairs"}, {}):
        batch = next(iter(opened(backend="torch", **options)))
        moved = batch.to("meta", non_blocking=True)
        tensors = [
            moved.images,
            moved.labels,
            *(moved.targets if isinstance(moved.targets, tuple) else [moved.targets]),
        ]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert moved.images.shape == batch.images.shape
        assert (moved.keys, moved.plan) == (batch.keys, batch.plan)
        assert (moved.targets is moved.labels) == (batch.targets is batch.labels)
        assert same_batch(batch.to(torch.device("cpu")), batch)
    with pytest.raises(TypeError):
        batch.to(torch.float16)  # type: ignore[arg-type]  # it would turn labels into fractions


def test_pinning_without_a_gpu_changes_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(opened(backend="torch")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert batch.pin_memory() is batch


@pytest.mark.parametrize("targets", ["rows", "pairs"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_gradients_of_chunks_add_up_to_that_of_the_batch(opened: Open, n: int, targets: str) -> None:
    batch = next(iter(opened(backend="torch", mix=MultiMix(k=3), targets=targets)))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, CLASSES)).double()
    loss_function = MultiMixLoss()

    def gradient(parts: list[Batch]) -> Tensor:
        model.zero_grad()
        for part in parts:
            (loss_function(model(part.images.double()), part.targets) * part.chunk_weight).backward()
        found = model[1].weight.grad
        assert isinstance(found, Tensor)
        return found.clone()

    whole = gradient([batch])
    chunks = list(batch.chunks(n))
    assert sum(chunk.chunk_weight for chunk in chunks) == pytest.approx(1, abs=1e-15)
    assert torch.allclose(gradient(chunks), whole, rtol=1e-5, atol=1e-7)
    nested = [part for chunk in chunks for part in chunk.chunks(2)]
    assert torch.allclose(gradient(nested), whole, rtol=1e-5, atol=1e-7)
    assert batch.chunk_weight == 1


def test_a_kept_batch_keeps_neither_its_loader_nor_the_index(opened: Open, shards: Path, backend: str) -> None:
    loader = open_loader(
        shards, batch_size=8, num_classes=CLASSES, transform=TINY, device="cpu", num_threads=2, backend=backend
    )  # type: ignore[arg-type]
    batch = next(iter(loader))
    context = loader.context
    held = [weakref.ref(part) for part in (loader, context, context.index, context.plan, context.reader)]
    expected = context.index.keys(batch.plan.sample)  # type: ignore[union-attr]
    del loader, context
    deadline = time.monotonic() + 60  # threads of a dropped loader end by themselves, in a moment
    while any(ref() is not None for ref in held) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert [type(ref()) for ref in held] == [type(None)] * len(held)
    assert batch.keys == expected
