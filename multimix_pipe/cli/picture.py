"""Drawing with Pillow: the grid of interpolations, and curves over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from multimix_pipe.config import Transform
from multimix_pipe.drawing import COLOURS, FAINT, INK, PAPER, Font, line_height, shorten, sized_font, ticks

Bytes = NDArray[np.uint8]

_SIDE_COLUMN = 130
_GAP = 10


@dataclass(frozen=True)
class Row:
    """A pair's interpolations from x to x'."""

    tiles: Bytes
    """(K, H, W, 3)"""
    lam: NDArray[np.float32]
    """(K,) weight of x."""
    own: str
    """Class of x."""
    other: str
    """Class of x'."""


def to_pixels(images: NDArray[np.float32], transform: Transform) -> Bytes:
    """Normalised (N, 3, H, W) -> (N, H, W, 3) pixels 0..255."""
    std, mean = np.asarray(transform.std, np.float32), np.asarray(transform.mean, np.float32)
    unit = images.transpose(0, 2, 3, 1) * std + mean
    pixels: Bytes = np.rint(unit * 255).clip(0, 255).astype(np.uint8)
    return pixels


def draw_grid(rows: Sequence[Row], title: str) -> Image.Image:
    """A line for each pair: its class names at both ends, under each tile its weight as a bar and a number."""
    k, height, width = rows[0].tiles.shape[:3]
    font = sized_font(max(11, min(16, width // 9)))
    caption = line_height(font) + 12
    top = line_height(font) + 2 * _GAP
    line = height + caption + _GAP
    page = Image.new("RGB", (2 * _SIDE_COLUMN + k * (width + _GAP) + _GAP, top + len(rows) * line + _GAP), PAPER)
    draw = ImageDraw.Draw(page)
    left, right = _SIDE_COLUMN + _GAP, _SIDE_COLUMN + k * (width + _GAP) + _GAP
    draw.text((page.width // 2, _GAP), shorten(title, font, page.width - 2 * _GAP), INK, font, anchor="ma")
    for number, row in enumerate(rows):
        y = top + number * line
        for column in range(k):
            x = left + column * (width + _GAP)
            page.paste(Image.fromarray(row.tiles[column]), (x, y))
            _weight(draw, (x, y + height + 3), width, float(row.lam[column]), font)
        middle = y + height // 2
        _name(draw, (_SIDE_COLUMN, middle), "ra", "x", row.own, COLOURS[0], font)
        _name(draw, (right, middle), "la", "x'", row.other, COLOURS[1], font)
    return page


def _weight(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, lam: float, font: Font) -> None:
    x, y = at
    split = x + round(width * lam)
    draw.rectangle((x, y, x + width - 1, y + 4), COLOURS[1])
    if split > x:
        draw.rectangle((x, y, split - 1, y + 4), COLOURS[0])
    draw.text((x + width // 2, y + 7), f"lam = {lam:.2f}", INK, font, anchor="ma")


def _name(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], anchor: str, symbol: str, name: str, colour: str, font: Font
) -> None:
    x, y = at
    step = line_height(font) + 2
    words = _wrap(name, font, _SIDE_COLUMN - _GAP)
    for number, text in enumerate([symbol, *words]):
        draw.text((x, y + round((number - (len(words) + 1) / 2) * step)), text, colour if number else INK, font, anchor)


@dataclass(frozen=True)
class Panel:
    """Curves over one axis."""

    title: str
    x_label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    """Name -> (x, y) points; at most as many as COLOURS."""


def draw_panels(panels: Sequence[Panel], title: str) -> Image.Image:
    """The panels side by side, with axes, and a legend that ends in each curve's last value."""
    width, height = 480, 360
    page = Image.new("RGB", (width * len(panels), height + 40), PAPER)
    ImageDraw.Draw(page).text((page.width // 2, 12), title, INK, sized_font(17), anchor="ma")
    for number, panel in enumerate(panels):
        page.paste(_panel(panel, width, height), (number * width, 40))
    return page


def _panel(panel: Panel, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    font = sized_font(13)
    left, right, top, bottom = 58, width - 18, 62, height - 42
    points = np.array([point for curve in panel.curves.values() for point in curve], dtype=np.float64)
    x_ticks, y_ticks = (ticks(points[:, axis].min(), points[:, axis].max()) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    draw.text(((left + right) // 2, 4), panel.title, INK, sized_font(15), anchor="ma")
    draw.text(((left + right) // 2, height - 18), panel.x_label, INK, font, anchor="ma")
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        draw.line((left, y, right, y), FAINT)
        draw.text((left - 6, y), f"{tick:g}", INK, font, anchor="rm")
    for tick in x_ticks:
        draw.text((place(tick, y_ticks[0])[0], bottom + 5), f"{tick:g}", INK, font, anchor="ma")
    at = left
    for (name, curve), colour in zip(panel.curves.items(), COLOURS, strict=False):
        line = [place(x, y) for x, y in curve]
        draw.line(line, colour, 3, joint="curve")
        for x, y in line:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        label = f"{name}: {curve[-1][1]:.3g}"
        draw.rectangle((at, 34, at + 14, 42), colour)
        draw.text((at + 20, 38), label, INK, font, anchor="lm")
        at += 40 + round(font.getlength(label))
    return image


def _wrap(name: str, font: Font, width: int, lines: int = 3) -> list[str]:
    """`name` cut at spaces and underscores into at most `lines` lines that fit `width` pixels."""
    done = [""]
    for word in name.replace("_", " ").split():
        longer = f"{done[-1]} {word}".strip()
        if font.getlength(longer) <= width or not done[-1]:
            done[-1] = longer
        else:
            done.append(word)
    if len(done) > lines:
        done = [*done[: lines - 1], " ".join(done[lines - 1 :])]
    return [shorten(line, font, width) for line in done]
