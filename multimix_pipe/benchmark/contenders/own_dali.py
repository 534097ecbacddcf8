"""This package's loader with `backend="dali"`."""

from __future__ import annotations

from collections.abc import Iterator

from multimix_pipe.benchmark.contenders.own import own_batches
from multimix_pipe.benchmark.setting import Setting

TITLE = "multimix_pipe, dali"
NEEDS = ("nvidia.dali",)
MIXES = None


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    return own_batches(setting, "dali")
