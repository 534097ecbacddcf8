"""Pictures: the grid of interpolations, drawn with Pillow, and learning curves, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from multimix_pipe.config import Transform
from multimix_pipe.errors import ConfigError

Bytes = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK = "#ffffff", "#222222"
COLOURS = ("#1f77b4", "#e6781e")
"""Colours of x and x', and of the first and second curve."""

_SIDE_COLUMN = 130
_GAP = 10


@dataclass(frozen=True)
class Row:
    """A pair's interpolations from x to x'."""

    tiles: Bytes
    """(K + 2, H, W, 3): x, the K interpolations, x'."""
    lam: NDArray[np.float32]
    """(K,) weight of x."""
    own: str
    """Class of x."""
    other: str
    """Class of x'."""
    weights: NDArray[np.float32] | None = None
    """(K, H, W) weight of x in each pixel: the region where x' outweighs x is outlined. None: no outline."""
    method: str = ""
    """Name of the mixing method, drawn above the classes."""


def to_pixels(images: NDArray[np.float32], transform: Transform) -> Bytes:
    """Convert normalised images (N, 3, H, W) to pixels (N, H, W, 3) in 0..255."""
    std, mean = np.asarray(transform.std, np.float32), np.asarray(transform.mean, np.float32)
    unit = images.transpose(0, 2, 3, 1) * std + mean
    pixels: Bytes = np.rint(unit * 255).clip(0, 255).astype(np.uint8)
    return pixels


def draw_grid(rows: Sequence[Row], title: str) -> Image.Image:
    """Draw one line per pair: x, the interpolations with the weight of x under each as a bar and a number, and x'."""
    columns, height, width = rows[0].tiles.shape[:3]
    font = _sized_font(max(11, min(16, width // 9)))
    caption = _line_height(font) + 12
    top = _line_height(font) + 2 * _GAP
    line = height + caption + _GAP
    # the gaps at x and x' are wider, to set them apart
    x_of = [_SIDE_COLUMN + _GAP + i * (width + _GAP) + _GAP * ((i > 0) + (i == columns - 1)) for i in range(columns)]
    right = x_of[-1] + width + _GAP
    page = Image.new("RGB", (right + _SIDE_COLUMN, top + len(rows) * line + _GAP), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((page.width // 2, _GAP), _shorten(title, font, page.width - 2 * _GAP), INK, font, anchor="ma")
    for number, row in enumerate(rows):
        y = top + number * line
        for x, tile in zip(x_of, row.tiles, strict=True):
            page.paste(Image.fromarray(tile), (x, y))
        for k, (x, lam) in enumerate(zip(x_of[1:-1], row.lam.tolist(), strict=True)):
            if row.weights is not None:
                page.paste(Image.fromarray(_outlined(row.tiles[1 + k], row.weights[k])), (x, y))
            _weight(draw, (x, y + height + 3), width, lam, font)
        for x, symbol in ((x_of[0], "x"), (x_of[-1], "x'")):
            draw.text((x + width // 2, y + height + 10), symbol, INK, font, anchor="ma")
        middle = y + height // 2
        draw.text((_GAP, y), row.method, INK, font)
        _name(draw, (_SIDE_COLUMN, middle), "ra", "x", row.own, COLOURS[0], font)
        _name(draw, (right, middle), "la", "x'", row.other, COLOURS[1], font)
    return page


def _outlined(tile: Bytes, weight: NDArray[np.float32]) -> Bytes:
    """Return a tile (H, W, 3) with an outline around the pixels in which x weighs less than half, unless these are all."""
    partner = weight < 0.5
    if partner.all():
        return tile
    around = np.pad(partner, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    marked = tile.copy()
    marked[partner & ~inner] = ImageColor.getrgb(COLOURS[1])
    return marked


def _weight(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, lam: float, font: Font) -> None:
    x, y = at
    split = x + round(width * lam)
    draw.rectangle((x, y, x + width - 1, y + 4), COLOURS[1])
    if split > x:
        draw.rectangle((x, y, split - 1, y + 4), COLOURS[0])
    text, letter = f" = {lam:.2f}", _line_height(font) // 2
    left = x + (width - letter - font.getlength(text)) / 2
    draw.text((left + letter, y + 7), text, INK, font, anchor="la")
    _lambda(draw, left, y + 10, letter)


def _lambda(draw: ImageDraw.ImageDraw, x: float, y: float, width: float) -> None:
    """Draw the letter λ, which Pillow's own font lacks."""
    height = 1.4 * width
    draw.line((x + 0.1 * width, y, x + width, y + height), INK, 1)
    draw.line((x + 0.48 * width, y + 0.42 * height, x, y + height), INK, 1)


def _name(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], anchor: str, symbol: str, name: str, colour: str, font: Font
) -> None:
    x, y = at
    step = _line_height(font) + 2
    words = _wrap(name, font, _SIDE_COLUMN - _GAP)
    for number, text in enumerate([symbol, *words]):
        draw.text((x, y + round((number - (len(words) + 1) / 2) * step)), text, colour if number else INK, font, anchor)


@dataclass(frozen=True)
class Panel:
    """Curves in one pair of axes."""

    title: str
    x_label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    """Name -> (x, y) points; at most as many as COLOURS."""
    percent: bool = False
    """Whether y is a fraction in 0..1, to be shown in percent."""


def draw_panels(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw panels side by side and write the picture to `path`; the legend gives each curve's last value.

    Raises ImportError if matplotlib is missing, and ConfigError if the picture cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(4.8 * len(panels), 4), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, curve), colour in zip(panel.curves.items(), COLOURS, strict=False):
            last = f"{curve[-1][1]:.1%}" if panel.percent else f"{curve[-1][1]:.3g}"
            axes.plot(*zip(*curve, strict=True), color=colour, marker="o", markersize=4, label=f"{name}: {last}")
        axes.set_title(panel.title)
        axes.set_xlabel(panel.x_label)
        if panel.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#d8d8d8")
        axes.legend()
    with _writable(path):
        figure.savefig(path, dpi=100)


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture in the format given by the extension of `path`. Raises ConfigError if it cannot be written."""
    with _writable(path):
        image.save(path)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Make the folder of a picture; turn errors, also those of the block inside, into ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: must be a picture file that can be written, e.g. grid.png: {error}") from error


def _sized_font(size: int) -> Font:
    """Return Pillow's default font, `size` pixels high."""
    return ImageFont.load_default(size=size)


def _line_height(font: Font) -> int:
    """Return the pixels from the top of a capital letter to the bottom of a "g"."""
    _, top, _, bottom = font.getbbox("Aglp'")
    return round(bottom - top)


def _shorten(text: str, font: Font, width: int) -> str:
    """Cut `text` to `width` pixels, ending in an ellipsis if it is longer."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _wrap(name: str, font: Font, width: int, lines: int = 3) -> list[str]:
    """Wrap `name` at spaces and underscores into at most `lines` lines of at most `width` pixels."""
    done = [""]
    for word in name.replace("_", " ").split():
        longer = f"{done[-1]} {word}".strip()
        if font.getlength(longer) <= width or not done[-1]:
            done[-1] = longer
        else:
            done.append(word)
    if len(done) > lines:
        done = [*done[: lines - 1], " ".join(done[lines - 1 :])]
    return [_shorten(line, font, width) for line in done]
