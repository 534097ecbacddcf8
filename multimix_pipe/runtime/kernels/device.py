"""The blend in torch operations, for any device, including a CPU without Numba."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multimix_pipe.runtime.kernels.layout import Layout
from multimix_pipe.runtime.kernels.resize import resized_partners, with_patches
from multimix_pipe.runtime.tensors import MixTensors

CHUNK_ELEMENTS = 2**24
"""Elements blended at a time, 64 MiB of float32: caches hold a larger part of that than of a whole batch."""


def blend(
    images: Tensor,
    mix: MixTensors,
    out: Tensor,
    layout: Layout,
    pixels: Tensor | None = None,
    normalize: Callable[[Tensor], Tensor] = Tensor.float,
) -> None:
    """Write w * x + (1 - w) * z into `out`, for the weight fields w of `mix`.

    images: (B, ...) float32. out: (B, K, ...) contiguous, of any floating dtype. pixels: what `normalize` made `images` of, from
    which z is resized; by default `images`.
    """
    pixels = images if pixels is None else pixels
    patches = resized_partners(pixels, mix, layout)
    pairs, k = mix.lam.shape
    images = images.reshape(pairs, *layout)
    rows = out.view(pairs, k, *layout)
    chunk = max(1, CHUNK_ELEMENTS // max(1, k * images[:1].numel()))
    for first in range(0, pairs, chunk):
        part = slice(first, first + chunk)
        weight = weights(mix, part, layout)
        target = rows[part] if out.dtype == torch.float32 else None
        mixed = torch.mul(images[part, None], weight, out=target)
        if patches is not None:
            z = with_patches(pixels.reshape(pairs, *layout), mix, patches, part, layout)
            other = normalize(z.view(-1, *pixels.shape[1:])).view(z.shape)
        else:
            other = images[mix.partner[part]]
            other = other if mix.partner.ndim == 2 else other[:, None]
        mixed += other * (1 - weight)
        if target is None:
            rows[part] = mixed


def weights(mix: MixTensors, part: slice, layout: Layout) -> Tensor:
    """Return the weight fields of some pairs, broadcastable to (pairs, K, planes, height, width, inner)."""
    weight = mix.constant[part, :, None, None, None, None]
    if mix.box is not None:
        y, x = (torch.arange(side, device=weight.device) for side in (layout.height, layout.width))
        y0, x0, y1, x1 = mix.box[part, :, :, None, None].unbind(2)
        inside = (y0 <= y[:, None]) & (y[:, None] < y1) & (x0 <= x) & (x < x1)
        weight = weight * (~inside)[:, :, None, :, :, None]
    if mix.factors is not None:
        height, width = mix.factors[part, :, : layout.height], mix.factors[part, :, layout.height :]
        weight = weight * (1 - height[..., None] * width[..., None, :])[:, :, None, :, :, None]
    return weight
