"""What drawings with Pillow share: colours, text that fits, axes, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from multimix_pipe.errors import ConfigError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, FAINT = "#ffffff", "#222222", "#d8d8d8"
COLOURS = ("#1f77b4", "#e6781e")
"""Of x and x', of the first and the second curve, of this package and its peers."""


def sized_font(size: int) -> Font:
    """Pillow's own font, `size` pixels high."""
    return ImageFont.load_default(size=size)


def line_height(of: Font) -> int:
    """Pixels from the top of a capital to the bottom of a g."""
    _, top, _, bottom = of.getbbox("Aglp'")
    return round(bottom - top)


def shorten(text: str, of: Font, width: int) -> str:
    """`text`, cut to `width` pixels with an ellipsis where it is longer."""
    if of.getlength(text) <= width:
        return text
    while text and of.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose [low, high]."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    magnitude = 10 ** np.floor(np.log10(span / 4))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if span / (m * magnitude) <= 5)
    first, last = np.floor(low / step), np.ceil(high / step)
    return [round(float(number * step), 10) for number in np.arange(first, max(last, first + 1) + 1)]


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture; the extension of `path` chooses the format."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: required a file to write a picture to, as grid.png: {error}") from error
