"""Corruptions of images, in five severities. They are this package's own: figures are not comparable to published mCE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.errors import ConfigError

SEVERITIES = (1, 2, 3, 4, 5)

Draws = Iterable[np.random.Generator]
Corruption = Callable[[Tensor, float, Draws], Tensor]
"""Takes images (B, 3, H, W) in [0, 1], a strength, and a generator for each image."""


def corrupt(images: Tensor, name: str, severity: int, samples: Sequence[int], seed: int = 0) -> Tensor:
    """Return corrupted images, as multiples of 1/255 in [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
        name: one of CORRUPTIONS.
        severity: 1 .. 5.
        samples: a number for each image. Noise is keyed by it: it does not depend on the batch or the process.
        seed: of the noise.
    """
    apply, strengths = CORRUPTIONS[name]
    kind = list(CORRUPTIONS).index(name)
    draws = (np.random.default_rng((seed, kind, severity, int(sample))) for sample in samples)  # few functions use it
    return (apply(images, strengths[severity - 1], draws).clamp(0, 1) * 255).round() / 255


def check_corruptions(names: Sequence[str]) -> None:
    """Raise ConfigError unless all names are corruptions."""
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(f"corruptions must be among {', '.join(CORRUPTIONS)}; found {name!r}")


def _tensor(arrays: list[NDArray[Any]], images: Tensor) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(images)


def gaussian_noise(images: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Add normal noise of standard deviation `sigma` to each value."""
    noise = [draw.standard_normal(images.shape[1:], dtype=np.float32) for draw in draws]
    return images + sigma * _tensor(noise, images)


def shot_noise(images: Tensor, photons: float, draws: Draws) -> Tensor:
    """Replace each value by a Poisson number of `photons * value`, divided by `photons`."""
    levels = images.clamp(0, 1).double().cpu().numpy()
    drawn = [draw.poisson(level * photons) / photons for draw, level in zip(draws, levels, strict=True)]
    return _tensor(drawn, images)


def impulse_noise(images: Tensor, share: float, draws: Draws) -> Tensor:
    """Set a share of the values to 0 or 1."""
    u = _tensor([draw.random(images.shape[1:], dtype=np.float32) for draw in draws], images)
    return torch.where(u < share, (u < share / 2).to(images), images)


def gaussian_blur(images: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Blur by a Gaussian whose standard deviation is `sigma` of the image's shorter side."""
    sigma *= min(images.shape[2:])
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2).to(images)
    return _filter(_filter(images, taps / taps.sum(), 2), taps / taps.sum(), 3)


def motion_blur(images: Tensor, length: float, draws: Draws) -> Tensor:
    """Average along a row, over `length` of the image's shorter side."""
    half = length * min(images.shape[2:]) / 2
    radius = int(half + 0.5)
    taps = (half + 0.5 - torch.arange(-radius, radius + 1, device=images.device).abs()).clamp(0, 1).to(images)
    return _filter(images, taps / taps.sum(), 3)


def _filter(images: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Convolve along the rows (axis 2) or columns (axis 3), with the images' edges repeated outwards."""
    radius = len(taps) // 2
    weight = taps.reshape(1, 1, *((-1, 1) if axis == 2 else (1, -1))).expand(images.shape[1], -1, -1, -1)
    padded = F.pad(images, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="replicate")
    return F.conv2d(padded, weight, groups=images.shape[1])


def brightness(images: Tensor, added: float, draws: Draws) -> Tensor:
    """Add `added` to each value."""
    return images + added


def contrast(images: Tensor, factor: float, draws: Draws) -> Tensor:
    """Scale the distance of each value to the image's mean."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + factor * (images - mean)


def saturation(images: Tensor, factor: float, draws: Draws) -> Tensor:
    """Scale the distance of each value to the pixel's grey."""
    grey = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return grey + factor * (images - grey)


def pixelate(images: Tensor, factor: float, draws: Draws) -> Tensor:
    """Shrink the images to `factor` of their sides, by averaging, and enlarge them by repeating pixels."""
    height, width = images.shape[2:]
    small = F.adaptive_avg_pool2d(images, (max(1, round(factor * height)), max(1, round(factor * width))))
    return F.interpolate(small, (height, width), mode="nearest")


def jpeg(images: Tensor, quality: float, draws: Draws) -> Tensor:
    """Encode and decode as JPEG of a quality of 1 to 100, with 4:2:0 subsampling."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    coded = (simplejpeg.encode_jpeg(image, quality=int(quality), colorsubsampling="420") for image in pixels)
    return _tensor([simplejpeg.decode_jpeg(data) for data in coded], images).permute(0, 3, 1, 2).contiguous() / 255


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": (shot_noise, (250, 100, 50, 25, 12)),
    "impulse_noise": (impulse_noise, (0.01, 0.03, 0.06, 0.1, 0.17)),
    "gaussian_blur": (gaussian_blur, (0.01, 0.014, 0.018, 0.024, 0.03)),
    "motion_blur": (motion_blur, (0.06, 0.09, 0.12, 0.16, 0.2)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),
    "saturation": (saturation, (0.6, 0.3, 0.0, 2.5, 4.0)),
    "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (jpeg, (40, 25, 15, 10, 6)),
}
"""Name -> the function and its strengths for severities 1 to 5."""
