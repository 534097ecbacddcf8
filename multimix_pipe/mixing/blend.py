"""The torch kernel of mixup: agrees with `mixup.mix_images` to the bit, on any device and for any K."""

from __future__ import annotations

import torch
from torch import Tensor


def blend(images: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> Tensor:
    """Write lam[b, k] * images[b] + (1 - lam[b, k]) * images[partner[b]] into out[b, k], and return `out`.

    images (B, ...) float32, partner (B,) int64, lam (B, K) float32, out (B, K, ...) of any floating type: sums are float32, only
    the result is rounded to `out`'s type. partner and lam lie on the images' device.

    Products and sum are separate operations: a fused multiply-add rounds once, and which elements of a row a compiler fuses may
    depend on the row's place in the batch; so row k of K would differ from the same weight at K = 1.
    """
    weight = lam.reshape(*lam.shape, *[1] * (images.ndim - 1))
    if images.device.type == "cpu":
        _blend_rows(images, partner, weight, out)
    else:
        own = images[:, None] * weight
        own += images[partner][:, None] * (1 - weight)
        out.copy_(own)
    return out


def _blend_rows(images: Tensor, partner: Tensor, weight: Tensor, out: Tensor) -> None:
    # a pair at a time: its K rows stay in the cache from the first product to the sum
    rest = 1 - weight
    term = torch.empty_like(out[0], dtype=torch.float32)
    total = None if out.dtype == torch.float32 else torch.empty_like(term)
    for row, other in enumerate(partner.tolist()):
        own = out[row] if total is None else total
        torch.mul(images[row], weight[row], out=own)
        torch.mul(images[other], rest[row], out=term)
        own += term
        if total is not None:
            out[row].copy_(total)
