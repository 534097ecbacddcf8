"""This package's loader with `backend="torch"`."""

from __future__ import annotations

from collections.abc import Iterator

from multimix_pipe.benchmark.contenders.own import own_batches
from multimix_pipe.benchmark.setting import Setting

TITLE = "multimix_pipe, torch"
NEEDS = ()
MIXES = None


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    return own_batches(setting, "torch")
