"""Helpers to open loaders and to compare their batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from multimix_pipe import Batch, Loader

Open = Callable[..., Loader]
PLAN_COLUMNS = ("sample", "window", "flip", "partner", "lam")


def same_batch(a: Batch, b: Batch) -> bool:
    """Return whether two batches are equal to the bit: samples, plans, images and targets."""
    plans = (a.plan.epoch, a.plan.start) == (b.plan.epoch, b.plan.start)
    plans &= all(np.array_equal(getattr(a.plan, name), getattr(b.plan, name)) for name in PLAN_COLUMNS)
    tensors = a.images.equal(b.images) and a.labels.equal(b.labels)
    own, other = (x if isinstance(x, tuple) else (x,) for x in (a.targets, b.targets))
    return plans and tensors and all(map(partial(type(own[0]).equal), own, other)) and a.keys == b.keys


def fingerprint(batch: Batch) -> list[Any]:
    """Return what `same_batch` compares as a short JSON value: epoch, first position, keys, and a digest of all numbers."""
    targets = batch.targets if isinstance(batch.targets, tuple) else (batch.targets,)
    arrays = [getattr(batch.plan, name) for name in PLAN_COLUMNS]
    arrays += [tensor.numpy() for tensor in (batch.images, batch.labels, *targets)]
    digest = hashlib.sha256(b"".join(map(np.ndarray.tobytes, arrays))).hexdigest()[:16]
    return [batch.plan.epoch, batch.plan.start, batch.keys, digest]


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    """Return whether two lists of batches are equal to the bit."""
    return len(first) == len(second) and all(map(same_batch, first, second))


def keys(loader: Loader) -> list[str]:
    """Return all keys of one epoch."""
    return [key for batch in loader for key in batch.keys]


def until_epoch(loader: Loader, epoch: int) -> list[Batch]:
    """Return the remaining batches of the epochs before `epoch`. At the end of an epoch, none of that epoch remain."""
    batches: list[Batch] = []
    while loader.state_dict()["epoch"] < epoch:
        batches += loader
    return batches


def resumed(opened: Open, state: dict[str, Any], **options: object) -> Loader:
    """Return a loader that resumes from `state`, after a round trip of the state through JSON."""
    loader = opened(**options)
    loader.load_state_dict(json.loads(json.dumps(state)))
    return loader
