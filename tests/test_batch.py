"""What a batch is: rows, pairs, chunks, memory that stays what it is; and training with it."""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.batches import Open
from helpers.samples import CLASSES, SIZE, TINY
from multimix_pipe import ConfigError, MultiMix, MultiMixLoss, mix_batch, mixed_accuracy
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
