"""This package's loader, one contender per backend. Bad samples are replaced by other samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from harness import forever
from multimix_pipe import MultiMix, TrainTransform, open_loader
from multimix_pipe.config import Backend, DType
from race.setting import ALPHA, RATIO, SCALE, Setting


def dali_batches(setting: Setting) -> Iterator[object]:
    """Return endless batches of backend="dali"."""
    return _batches(setting, "dali")


def torch_batches(setting: Setting) -> Iterator[object]:
    """Return endless batches of backend="torch"."""
    return _batches(setting, "torch")


def _batches(setting: Setting, backend: Backend) -> Iterator[object]:
    loader = open_loader(
        setting.shards,
        batch_size=setting.batch_size,
        num_classes=setting.num_classes,
        mix=None if setting.k is None else MultiMix(k=setting.k, alpha=ALPHA),
        transform=TrainTransform(size=setting.size, scale=SCALE, ratio=RATIO, antialias=setting.antialias),
        backend=backend,
        device=setting.device,
        dtype=cast("DType", setting.dtype),
        rank=0,
        world_size=1,
        on_bad_sample="replace",
        num_threads=setting.threads,
    )
    return forever(loader)
