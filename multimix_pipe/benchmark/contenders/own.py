"""This package's loader as a contender."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import cast

from multimix_pipe import Loader, MultiMix, TrainTransform, open_loader
from multimix_pipe.benchmark.setting import ALPHA, RATIO, SCALE, Setting
from multimix_pipe.config import Backend, DType


def own_batches(setting: Setting, backend: Backend) -> Iterator[object]:
    """Endless batches of `backend`; a bad sample is replaced by another one."""
    loader: Loader = open_loader(
        list(setting.shards),
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
        label=setting.label,
    )
    return chain.from_iterable(repeat(loader))
