"""The best that tuning gets out of webdataset, torch's DataLoader and torchvision.

Worker processes decode with `decode_jpeg`, crop, resize and flip in uint8, into one batch in shared memory: a quarter of the
bytes of float32, and no copy when it is handed over. On a CPU the main process normalises and mixes a pair at a time, so that the
pair stays in the core's cache, into one output that is kept, in a few threads of one core each: torch's own threads wait for each
other where the workers take the cores, and took three to four times as long. On a GPU both are one pass each over the whole
batch. A batch is valid until the next one is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from multimix_pipe.benchmark.contenders.webdataset_source import kept_ready, load_batches
from multimix_pipe.benchmark.contenders.webdataset_torchvision import decode
from multimix_pipe.benchmark.setting import ALPHA, RATIO, SCALE, Setting
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD

TITLE = "DataLoader, webdataset, tuned"
NEEDS = ("webdataset", "torchvision")
MIXES = None
queued = kept_ready

_MIXING_THREADS = 4


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    loaded = load_batches(setting, _Transform(setting), _collate)
    mix = _on_gpu(setting) if setting.device != "cpu" else _on_cpu(setting)
    k = setting.k or 1
    for pixels, labels in loaded:
        partner = torch.randperm(setting.batch_size)
        lam = torch.distributions.Beta(ALPHA, ALPHA).sample((setting.batch_size, k))
        pixels, labels, partner, lam = (
            part.to(setting.device, non_blocking=True) for part in (pixels, labels, partner, lam)
        )
        images = mix(pixels, partner, lam)
        if setting.k is None:
            yield images, labels
        else:
            dense = one_hot(labels, setting.num_classes).to(torch.float32)
            yield images, torch.lerp(dense[partner][:, None], dense[:, None], lam[..., None]).flatten(0, 1)


class _Transform:
    def __init__(self, setting: Setting) -> None:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(setting.size, scale=SCALE, ratio=RATIO, antialias=setting.antialias)
        self._apply: Any = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __call__(self, sample: tuple[bytes, int]) -> tuple[Tensor, int]:
        encoded, label = sample
        return self._apply(decode(encoded)), label


def _collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    batch = torch.empty((len(samples), *samples[0][0].shape), dtype=torch.uint8)
    batch.share_memory_()  # type: ignore[no-untyped-call]
    for row, (pixels, _) in zip(batch, samples, strict=True):
        row.copy_(pixels)
    return batch, torch.tensor([label for _, label in samples])


Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""uint8 images (B, 3, H, W), partners (B,), weights (B, K) -> (B*K, 3, H, W), in memory that the next call takes again."""


def _scale_and_shift(device: str) -> tuple[Tensor, Tensor]:
    """What normalising is to a pixel of 0..255: a product and a sum."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 1 / (255 * std), -mean / std


def _on_cpu(setting: Setting) -> Mix:
    torch.set_num_threads(1)
    threads = min(setting.threads, _MIXING_THREADS)
    pool = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1))
    scale, shift = _scale_and_shift("cpu")
    k, image = setting.k or 1, (3, setting.size, setting.size)
    out = torch.empty(setting.batch_size, k, *image)
    pairs = torch.empty(threads, 2, *image)
    result = out if setting.dtype == "float32" else out.to(getattr(torch, setting.dtype))

    def part(number: int, pixels: Tensor, partner: list[int], weights: Tensor) -> None:
        pair = pairs[number]
        for row in range(number, setting.batch_size, threads):
            if setting.k is None:
                torch.mul(pixels[row], scale, out=out[row, 0]).add_(shift)
            else:
                pair[0].copy_(pixels[row])
                pair[1].copy_(pixels[partner[row]])
                pair.mul_(scale).add_(shift)
                torch.mm(weights[row], pair.view(2, -1), out=out[row].view(k, -1))
            if result is not out:
                result[row].copy_(out[row])

    def mix(pixels: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
        work = partial(part, pixels=pixels, partner=partner.tolist(), weights=torch.stack((lam, 1 - lam), dim=2))
        list(pool.map(work, range(threads)))
        return result.flatten(0, 1)

    return mix


def _on_gpu(setting: Setting) -> Mix:
    scale, shift = _scale_and_shift(setting.device)
    dtype: torch.dtype = getattr(torch, setting.dtype)
    image = (3, setting.size, setting.size)
    out = torch.empty(setting.batch_size, setting.k or 1, *image, dtype=dtype, device=setting.device)

    def mix(pixels: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
        images = torch.addcmul(shift, pixels, scale).to(dtype)
        if setting.k is None:
            return images
        weight = lam.view(*lam.shape, 1, 1, 1).to(dtype)
        torch.lerp(images[partner][:, None], images[:, None], weight, out=out)
        return out.flatten(0, 1)

    return mix
