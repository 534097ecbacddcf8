"""A small generated image set: ten kinds of shapes of random colour, position, size and rotation on a textured background.

Only the outline distinguishes the classes; strong JPEG compression, clutter and noise keep the task from being trivial.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from multimix_pipe.shards.progress import Progress

Points = NDArray[np.float64]

SIDE = 96
"""Height and width of an image, in pixels."""
_OVERSAMPLE = 2

_Colour = NDArray[np.float32]
_Field = NDArray[np.float32]


def _regular(corners: int, radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> Points:
    angle = 2 * np.pi * np.arange(corners) / corners
    points: Points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + np.array(centre)
    return points


def _star() -> Points:
    angle = np.pi * np.arange(10) / 5
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]


def _cross() -> Points:
    a = 0.34
    return np.array(
        [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    )


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 16


_ROUND = _regular(48)

OUTLINES: dict[str, tuple[Points, Points | None]] = {
    "arrow": (np.array([(1, 0), (0.1, 0.85), (0.1, 0.3), (-1, 0.3), (-1, -0.3), (0.1, -0.3), (0.1, -0.85)]), None),
    "circle": (_ROUND, None),
    "crescent": (_ROUND, _regular(48, 0.85, (0.5, 0.0))),
    "cross": (_cross(), None),
    "heart": (_heart(), None),
    "hexagon": (_regular(6), None),
    "ring": (_ROUND, _regular(48, 0.55)),
    "square": (_regular(4), None),
    "star": (_star(), None),
    "triangle": (_regular(3), None),
}
"""Class name -> outline within the unit circle, and the outline of the hole in it, if any."""


def write_shapes(folder: Path, train: int, test: int, *, progress: bool = True) -> None:
    """Write `train` and `test` images of each of the ten classes as `folder/{train,test}/{class}/{number}.jpg`.

    Each image depends on its split, class and number only.
    """
    with Progress("drawing shapes", total=(train + test) * len(OUTLINES), unit="image", disable=not progress) as bar:
        for split, count in enumerate((train, test)):
            for number, name in enumerate(OUTLINES):
                place = folder / ("train", "test")[split] / name
                place.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    rng = np.random.default_rng([split, number, i])
                    (place / f"{i:04d}.jpg").write_bytes(draw_shape(name, rng))
                    bar.update()


def draw_shape(name: str, rng: np.random.Generator) -> bytes:
    """Draw one image of the class `name` of OUTLINES, SIDE pixels square, and return it as JPEG bytes."""
    ground, figure = _two_colours(rng)
    picture = _with_strokes(_textured(ground, rng), rng)
    shown = _mask(name, rng) > rng.uniform(80, 170)
    picture[shown] = _textured(figure, rng)[shown]
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(3, 14))
    buffer = io.BytesIO()
    quality = int(rng.integers(20, 55))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _two_colours(rng: np.random.Generator) -> tuple[_Colour, _Colour]:
    while True:
        ground, figure = rng.uniform(20, 235, (2, 3)).astype(np.float32)
        if np.abs(ground - figure).sum() > 240:
            return ground, figure


def _textured(colour: _Colour, rng: np.random.Generator) -> _Field:
    """Return an image (SIDE, SIDE, 3) of coarse and fine stains around `colour`."""
    field = np.tile(colour, (SIDE, SIDE, 1))
    for cells, strength in ((4, 28), (16, 15)):
        stains = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        smooth = np.asarray(stains.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        field += (smooth - 127.5) * np.float32(strength / 127.5)
    return field


def _with_strokes(field: _Field, rng: np.random.Generator) -> _Field:
    """Draw one to three lines across the image, so that an edge alone does not reveal the class."""
    image = Image.fromarray(field.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        ends, colour = rng.uniform(0, SIDE, 4).tolist(), rng.integers(0, 256, 3).tolist()
        draw.line(ends, fill=tuple(colour), width=int(rng.integers(1, 4)))
    return np.asarray(image, dtype=np.float32).copy()


def _mask(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    side = SIDE * _OVERSAMPLE
    radius = rng.uniform(0.26, 0.42) * side
    centre = rng.uniform(radius * 0.85, side - radius * 0.85, 2)
    turn = rng.uniform(-0.4, 0.4)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    squeeze = np.array([1.0, rng.uniform(0.8, 1.0)])
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for points, fill in zip(OUTLINES[name], (255, 0), strict=True):
        if points is not None:
            corners = points @ rotation * squeeze * radius + centre
            draw.polygon([(x, y) for x, y in corners.tolist()], fill=fill)
    return np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX))
