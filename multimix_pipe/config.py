"""User settings as frozen dataclasses that are validated on construction, and the checks of arguments.

`plan` turns the settings into decisions, and a backend executes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Literal

from multimix_pipe.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Backend = Literal["auto", "dali", "torch"]
DType = Literal["float32", "float16", "bfloat16"]
Shuffle = Literal["global", "window", "none"]
LastBatch = Literal["wrap", "drop", "partial"]
OnBadSample = Literal["raise", "replace"]
Decode = Literal["fast", "exact"]
Targets = Literal["rows", "pairs"]
Keys = str | PathLike[str] | Iterable[str]


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}")


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise ConfigError unless `value` is an int (NumPy's too, not a bool) in [low, high]."""
    bound = f">= {low}" if high is None else f"in [{low}, {high}]"
    ok = isinstance(value, Integral) and not isinstance(value, bool)
    if not ok or value < low or (high is not None and value > high):  # type: ignore[operator]
        raise ConfigError(f"{name} must be an int {bound}; found {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False; found {value!r}")


def check_label(label: object) -> None:
    """Raise ConfigError unless `label` is "cls", "txt", "folder", "json:KEY" or None."""
    known = isinstance(label, str) and (label in ("cls", "txt", "folder") or (label[:5] == "json:" and label[5:]))
    if label is not None and not known:
        raise ConfigError(
            'label must be "cls", "txt", "folder", "json:KEY" (KEY: a field of the sample\'s json) or None (no labels); '
            f"found {label!r}{_label_hint(label)}"
        )


def _label_hint(label: object) -> str:
    if isinstance(label, Mapping):
        return ". Pass a mapping from class names to ids as classes=, and say with label= where the names are"
    if label in ("json", "json:"):
        return '. Name the field, as in "json:label"'
    return ". For no labels pass None, not a string" if label in ("", "none", "None") else ""


def check_number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise ConfigError unless `value` is a finite real number in [low, high], or (low, high] with `open_low`."""
    ok = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        bracket = "(" if open_low else "["
        raise ConfigError(f"{name} must be a finite number in {bracket}{low:g}, {high:g}]; found {value!r}")


def check_alpha(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is a number in (0, 1000], or a pair (a, b) of them."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ConfigError(f"{name} must be a number or a pair (a, b) of numbers; found {value!r}")
    for number in pair:
        check_number(name, number, 0.0, 1000.0, open_low=True)


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ConfigError(f"{name} must be a pair (low, high); found {value!r}")
    for bound in value:
        check_number(name, bound, low, high, open_low=low == 0.0)
    if value[0] > value[1]:
        raise ConfigError(f"{name} must be a pair (low, high) with low <= high; found {value!r}")


def _check_channels(name: str, value: object, *, positive: bool) -> None:
    if not isinstance(value, Sequence) or len(value) != 3:
        raise ConfigError(f"{name} must hold three numbers, one per colour channel; found {value!r}")
    for number in value:
        check_number(name, number, 0.0 if positive else -math.inf, open_low=positive)
    if (min if positive else max)(value) > 1:
        scaled = ", ".join(f"{number / 255:.3f}" for number in value)
        raise ConfigError(
            f"{name} must be that of pixels in [0, 1]; found {tuple(value)}. Divide mean and std of pixels in [0, 255] by 255: "
            f"{name.rpartition('.')[2]}=({scaled})"
        )


def check_height_width(name: str, size: object) -> tuple[int, int]:
    """Return (height, width). Raises ConfigError unless `size` is a side of a square, or a pair of sides in [1, 16384]."""
    pair = (size, size) if isinstance(size, Integral) else size
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ConfigError(f"{name} must be an int or a pair (height, width); found {size!r}")
    for side in pair:
        check_int(name, side, 1, 16384)
    return int(pair[0]), int(pair[1])


def make_plain(settings: Any) -> None:
    """Convert NumPy scalars in the fields of a frozen dataclass to Python numbers, because loader states are JSON."""
    for item in fields(settings):
        object.__setattr__(settings, item.name, _plain(getattr(settings, item.name)))


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) and len(value) <= 3 else value


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and horizontal flip, then `(pixel / 255 - mean) / std`.

    The crop is torchvision's RandomResizedCrop: an area in `scale` (a fraction of the image's area) and a log-uniform
    aspect ratio in `ratio` (width / height) are drawn until the crop fits into the image. After ten failed draws, the
    crop is the largest centred one whose aspect ratio is within `ratio`.
    """

    random: ClassVar[bool] = True
    """Whether crops and flips are random."""

    size: int | tuple[int, int] = 224
    """Output (height, width) in pixels; an int means a square."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Bounds of the crop's area as a fraction of the image's area, in (0, 1]."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Bounds of the crop's aspect ratio (width / height), in [0.001, 1000]."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    antialias: bool = True
    """Antialiased bilinear interpolation, as in torchvision and Pillow; False: plain bilinear, which is faster."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel, for pixels in [0, 1]."""

    def __post_init__(self) -> None:
        check_height_width("TrainTransform.size", self.size)
        _check_range("TrainTransform.scale", self.scale, 0.0, 1.0)
        _check_range("TrainTransform.ratio", self.ratio, 0.001, 1000.0)
        check_number("TrainTransform.flip", self.flip, 0.0, 1.0)
        check_bool("TrainTransform.antialias", self.antialias)
        _check_channels("TrainTransform.mean", self.mean, positive=False)
        _check_channels("TrainTransform.std", self.std, positive=True)
        make_plain(self)

    @cached_property
    def height_width(self) -> tuple[int, int]:
        """Output size as (height, width)."""
        return check_height_width("TrainTransform.size", self.size)


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to `resize`, crop the centre to `size`, then `(pixel / 255 - mean) / std`.

    The defaults are torchvision's Resize(256), CenterCrop(224). A resized image that is smaller than `size` is stretched to
    fill it (torchvision pads it with black); this cannot happen with a square `size`.
    """

    random: ClassVar[bool] = False
    """Whether crops and flips are random."""

    size: int | tuple[int, int] = 224
    """Output (height, width) in pixels; an int means a square."""
    resize: int | None = None
    """Shorter side before the crop, in pixels, at least the shorter side of `size`; None: 256/224 of that side."""
    antialias: bool = True
    """As in TrainTransform; use the same value as in training."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        height_width = check_height_width("EvalTransform.size", self.size)
        if self.resize is not None:
            check_int("EvalTransform.resize", self.resize, min(height_width), 16384 * 2)
        check_bool("EvalTransform.antialias", self.antialias)
        _check_channels("EvalTransform.mean", self.mean, positive=False)
        _check_channels("EvalTransform.std", self.std, positive=True)
        make_plain(self)

    @property
    def shorter_side(self) -> int:
        """Shorter side of an image after the resize, in pixels."""
        return round(min(self.height_width) * 256 / 224) if self.resize is None else self.resize

    @cached_property
    def height_width(self) -> tuple[int, int]:
        """Output size as (height, width)."""
        return check_height_width("EvalTransform.size", self.size)


Transform = TrainTransform | EvalTransform
