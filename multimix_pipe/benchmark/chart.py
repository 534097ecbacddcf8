"""A horizontal bar chart, drawn with Pillow: medians, and whiskers from the lowest to the highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from PIL import Image, ImageDraw

from multimix_pipe.drawing import COLOURS, FAINT, INK, PAPER, Font, shorten, sized_font, ticks

WIDTH = 1200
_GRAY = "#767676"
_MARGIN, _LABELS, _VALUES = 36, 330, 130
_BAR, _STEP, _GROUP = 24, 36, 46


@dataclass(frozen=True)
class Bar:
    """One contender."""

    label: str
    values: Sequence[float]
    """One a round; none where there is nothing to show but the note."""
    note: str = ""
    """After the median's number; or why there is none."""
    own: bool = False
    """Drawn in the first of the two colours."""


@dataclass(frozen=True)
class Group:
    """Bars under one heading."""

    title: str
    """"" for none."""
    bars: Sequence[Bar] = field(default_factory=tuple)


def draw_bars(title: str, subtitles: Sequence[str], groups: Sequence[Group], unit: str) -> Image.Image:
    """A picture WIDTH pixels wide; its height follows from the bars. Bars are drawn in the order given."""
    headings = sum(_GROUP for group in groups if group.title)
    top = _MARGIN + 40 + 24 * len(subtitles) + 18
    bottom = top + headings + _STEP * sum(len(group.bars) for group in groups)
    page = Image.new("RGB", (WIDTH, bottom + 64 + _MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(page)
    across = WIDTH - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN - 8), shorten(title, sized_font(26), across), INK, sized_font(26))
    for number, line in enumerate(subtitles):
        at = (_MARGIN, _MARGIN + 34 + 24 * number)
        draw.text(at, shorten(line, sized_font(16), across), _GRAY, sized_font(16))

    left, right = _MARGIN + _LABELS, WIDTH - _MARGIN - _VALUES
    highest = max((value for group in groups for bar in group.bars for value in bar.values), default=1.0)
    axis = ticks(0.0, highest)
    scale = (right - left) / axis[-1]
    for tick in axis:
        x = left + tick * scale
        draw.line((x, top - 6, x, bottom + 6), FAINT)
        draw.text((x, bottom + 12), f"{tick:,g}", _GRAY, sized_font(15), anchor="ma")
    draw.text(((left + right) / 2, bottom + 38), unit, _GRAY, sized_font(15), anchor="ma")

    y = top
    for group in groups:
        if group.title:
            draw.text((_MARGIN, y + _GROUP - 14), group.title, INK, sized_font(19), anchor="ls")
            y += _GROUP
        for bar in group.bars:
            _bar(draw, bar, y, left, scale)
            y += _STEP
    return page


def _bar(draw: ImageDraw.ImageDraw, bar: Bar, top: int, left: int, scale: float) -> None:
    middle = top + _STEP / 2
    font = sized_font(17)
    draw.text((left - 14, middle), shorten(bar.label, font, _LABELS - 14), INK, font, anchor="rm")
    if not bar.values:
        small = sized_font(15)
        _text(draw, (left + 8, middle), shorten(bar.note, small, WIDTH - _MARGIN - left - 8), _GRAY, small)
        return
    low, mid, high = (left + value * scale for value in (min(bar.values), median(bar.values), max(bar.values)))
    draw.rectangle((left, middle - _BAR / 2, max(mid, left + 1), middle + _BAR / 2), COLOURS[0 if bar.own else 1])
    draw.line((low, middle, high, middle), INK, 2)
    for end in (low, high):
        draw.line((end, middle - 6, end, middle + 6), INK, 2)
    number = f"{median(bar.values):,.3g}" if median(bar.values) < 1000 else f"{median(bar.values):,.0f}"
    at = max(mid, high) + 10
    _text(draw, (at, middle), number, INK, font)
    _text(draw, (at + font.getlength(number) + 10, middle), bar.note, _GRAY, sized_font(15))


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, font: Font) -> None:
    """Text on the paper's colour, so that the axis does not run through it."""
    x0, y0, x1, y1 = draw.textbbox(at, text, font, anchor="lm")
    draw.rectangle((x0 - 3, y0 - 2, x1 + 3, y1 + 2), PAPER)
    draw.text(at, text, colour, font, anchor="lm")
