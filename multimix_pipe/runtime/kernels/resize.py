"""ResizeMix's z: the partner resized to each member's box."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.mixing import Field
from multimix_pipe.mixing.reference import resize_rows
from multimix_pipe.runtime.kernels.layout import Layout
from multimix_pipe.runtime.tensors import MixTensors, upload

InParts = Callable[[int, Callable[[int, int], None]], None]


class Patches(NamedTuple):
    """The resized partners of a batch, one behind the other; each is (planes, height, width, inner) of its box."""

    values: Tensor
    """(total,) of the images' dtype."""
    start: NDArray[np.int64]
    """(B, K) place of each member's patch in `values`; read only where the field is RESIZED and the box is not empty."""


def interleaved(image: Tensor) -> Tensor:
    """Return an image (planes, H, W, inner) as (H, W, planes, inner), contiguous."""
    if image.device.type == "cpu":  # torch would start threads for it
        return torch.from_numpy(np.stack(tuple(image.numpy()), axis=2))
    return image.permute(1, 2, 0, 3).contiguous()


def resized_partners(
    images: Tensor,
    mix: MixTensors,
    layout: Layout,
    in_parts: InParts = lambda n, work: work(0, n),
    interleaved: Callable[[Tensor], Tensor] = interleaved,
) -> Patches | None:
    """Return the patches of all pairs whose field is RESIZED, or None if there are none.

    images: (B, ...) on any device. The filter is Pillow's antialiased bilinear one; uint8 pixels are rounded to uint8.
    in_parts(n, work): calls `work(first, stop)` for all of n patches, perhaps in several threads.
    """
    plan = mix.resized
    if plan is None:
        return None
    sides = np.where((plan.field == Field.RESIZED)[:, None, None], plan.box[..., 2:] - plan.box[..., :2], 0)
    sizes = sides.prod(axis=-1, dtype=np.int64) * (layout.planes * layout.inner)
    stop = np.cumsum(sizes).reshape(sizes.shape)
    values, start = images.new_empty(int(sizes.sum())), stop - sizes
    partner, rounds, members = plan.member_partner, not images.is_floating_point(), np.argwhere(sizes)
    on_host = values.numpy() if values.device.type == "cpu" else None

    def work(first: int, end: int) -> None:
        held = -1
        for b, k in members[first:end].tolist():
            height, width = sides[b, k].tolist()
            if partner[b, k] != held:
                held = int(partner[b, k])
                # channels that are adjacent are what torch resizes fastest
                pixels = interleaved(images[held].reshape(layout))
                image = pixels.view(1, layout.height, layout.width, -1).permute(0, 3, 1, 2)
                if rounds and image.device.type != "cpu":  # torch has no kernel for it
                    image = image.float()
            patch = _resize(image, height, width, layout, rounds)
            patch = patch.view(layout.planes, layout.inner, height, width).permute(0, 2, 3, 1)
            place = slice(start[b, k], stop[b, k])
            if on_host is None:
                values[place].view(patch.shape).copy_(patch)
            else:  # torch would start threads for it
                np.copyto(on_host[place].reshape(patch.shape), patch.numpy(), casting="unsafe")

    in_parts(len(members), work)
    return Patches(values, start)


def _resize(image: Tensor, height: int, width: int, layout: Layout, rounds: bool) -> Tensor:
    """Return (1, channels, height, width): an image (1, channels, H, W) resized and, if `rounds`, rounded to whole numbers."""
    if min(height, width) > 1:
        patch = torch.nn.functional.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
    else:  # torch 2.13 gives wrong values for a width of 1, and fails for uint8
        sides = (height, layout.height), (width, layout.width)
        lines, columns = upload([resize_rows(*side).astype(np.float32) for side in sides], image.device)
        patch = lines @ image.float() @ columns.T
    return patch.round() if rounds and patch.is_floating_point() else patch


def with_patches(images: Tensor, mix: MixTensors, patches: Patches, part: slice, layout: Layout) -> Tensor:
    """Return z of some pairs, (pairs, K, *layout) of the images' dtype: x', with the patches in their boxes.

    images: (B, *layout).
    """
    assert mix.resized is not None
    other = images[mix.member_partner[part]]
    boxes, resized = mix.resized.box[part].tolist(), (mix.resized.field[part] == Field.RESIZED).tolist()
    for b, pair in enumerate(boxes):
        for k, (y0, x0, y1, x1) in enumerate(pair if resized[b] else ()):
            height, width = y1 - y0, x1 - x0
            if height and width:
                at = int(patches.start[part][b, k])
                size = layout.planes * height * width * layout.inner
                patch = patches.values[at : at + size].view(layout.planes, height, width, layout.inner)
                other[b, k, :, y0:y1, x0:x1] = patch
    return other
