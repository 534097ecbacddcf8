"""Mixing on a GPU in one kernel, written in Triton: each program reads a block of x and of x' once and writes all K rows of it.

It works on whatever lies in the GPU's memory, so on what DALI hands over through DLPack. To be measured by bench/mix_stage.py.

Products and sum are rounded one by one (`enable_fp_fusion=False` keeps both LLVM and ptxas from fusing them), so the rows equal
`multimix_pipe.mixing.mixup.mix_images` to the bit, and row k of K rows equals the one row of K = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """How the work is cut up; it changes the speed and never the result."""

    block: int = 4096
    """Elements of a sample that a program takes, a power of 2."""
    warps: int = 8
    pairs_first: bool = True
    """Neighbouring programs take the same block of all pairs, not all blocks of a pair: x' is then still in the L2 cache."""


def mix_images(images: Tensor, partner: Tensor, lam: Tensor, out: Tensor, setting: Setting = Setting()) -> Tensor:
    """Write lam[b, k] * images[b] + (1 - lam[b, k]) * images[partner[b]] into out[b, k], and return `out`.

    images (B, ...) float32, partner (B,) an integer type, lam (B, K) float32, out (B, K, ...) float32, float16 or bfloat16: all
    contiguous, on one GPU. Runs on torch's current stream and waits for nothing.
    """
    return _launch(images, None, None, 1, partner, lam, out, setting)


def mix_pixels(
    pixels: Tensor,
    mean: Tensor,
    scale: Tensor,
    partner: Tensor,
    lam: Tensor,
    out: Tensor,
    setting: Setting = Setting(),
    *,
    channels_last: bool = False,
) -> Tensor:
    """The same for x = (pixel - mean) * scale, computed in the kernel in float32.

    pixels (B, C, H, W) uint8, or (B, H, W, C) with channels_last; mean and scale (C,) float32 in units of 0..255; `out` has the
    pixels' layout behind (B, K).
    """
    plane = 1 if channels_last else pixels[0, 0].numel()
    return _launch(pixels, mean, scale, plane, partner, lam, out, setting)


def _launch(
    images: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    plane: int,
    partner: Tensor,
    lam: Tensor,
    out: Tensor,
    setting: Setting,
) -> Tensor:
    pairs, k = lam.shape
    if not pairs:
        return out
    size = images[0].numel()
    for tensor in (images, partner, lam, out):
        assert tensor.is_contiguous(), "the kernel reads and writes contiguous memory"
    assert partner.shape == (pairs,)
    assert out.shape == (pairs, k, *images.shape[1:])
    assert size + setting.block < 2**31, "places within a sample are 32-bit numbers"
    blocks = -(-size // setting.block)
    grid = (pairs, blocks) if setting.pairs_first else (blocks, pairs)
    assert grid[1] < 2**16, "CUDA's limit"
    from_pixels = mean is not None
    with torch.cuda.device_of(images):
        _mix[grid](
            images,
            mean if from_pixels else lam,  # a pointer that is not used
            scale if from_pixels else lam,
            partner,
            lam,
            out,
            size,
            FROM_PIXELS=from_pixels,
            PLANE=plane,
            CHANNELS=len(mean) if mean is not None else 1,
            K=k,
            BLOCK=setting.block,
            PAIRS_FIRST=setting.pairs_first,
            num_warps=setting.warps,
            enable_fp_fusion=False,
        )
    return out


@triton.jit
def _mix(
    images,
    mean,
    scale,
    partner,
    lam,
    out,
    size,
    FROM_PIXELS: tl.constexpr,
    PLANE: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS_FIRST: tl.constexpr,
):
    pair = tl.program_id(0 if PAIRS_FIRST else 1).to(tl.int64)  # 64 bits: B*K*C*H*W passes 2**31
    block = tl.program_id(1 if PAIRS_FIRST else 0)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    other_pair = tl.load(partner + pair).to(tl.int64)
    own = tl.load(images + pair * size + place, mask=inside, other=0).to(tl.float32)
    other = tl.load(images + other_pair * size + place, mask=inside, other=0).to(tl.float32)
    if FROM_PIXELS:
        channel = (place // PLANE) % CHANNELS
        shift = tl.load(mean + channel)
        factor = tl.load(scale + channel)
        own = (own - shift) * factor
        other = (other - shift) * factor
    for k in tl.static_range(K):
        weight = tl.load(lam + pair * K + k)
        mixed = weight * own + (1.0 - weight) * other
        # .cs: written once and not read again here, so it need not push the images out of the cache
        tl.store(out + (pair * K + k) * size + place, mixed.to(out.dtype.element_ty), mask=inside, cache_modifier=".cs")
