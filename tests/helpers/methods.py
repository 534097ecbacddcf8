"""A mixing method outside the package, as a user would write it to try an idea."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing import METHODS, Field, Method


class VerticalSplit:
    """x on one side of a vertical line and x' on the other. The side is drawn for each pair."""

    field: ClassVar[Field] = Field.BOX
    uniforms: ClassVar[int] = 1

    def draw(
        self, u: NDArray[np.float64], lam: NDArray[np.float32], size: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        height, width = size
        line = np.rint(lam * width).astype(np.int32)
        left = u < 0.5
        zeros = np.zeros_like(line)
        x0, x1 = np.where(left, zeros, line), np.where(left, width - line, width)
        box = np.stack([zeros, x0, zeros + height, x1], axis=-1).astype(np.int32)
        return (line / width).astype(np.float32), box


@contextmanager
def registered(name: str = "split", method: Method | None = None) -> Iterator[str]:
    """Register a method, by default a `VerticalSplit`, under `name` inside this context."""
    METHODS[name] = method or VerticalSplit()
    try:
        yield name
    finally:
        del METHODS[name]
