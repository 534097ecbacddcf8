"""torchvision's RandomResizedCrop for contenders that do without torchvision: the window alone."""

from __future__ import annotations

import math

import numpy as np

from multimix_pipe.benchmark.setting import RATIO, SCALE


def random_window(width: int, height: int, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """A window (x, y, width, height) of an image of `width` by `height` pixels: ten tries, else the largest centred one."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        area = width * height * draw.uniform(*SCALE)
        ratio = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1)), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h
