"""webdataset and torch's DataLoader: with Pillow, with torchvision, and tuned as well as we could.

webdataset is set up as in its ResNet-50 example. Shards are drawn with replacement (`resampled=True`), so the stream is endless
and any number of workers can share any number of shards. The example also splits the batches and shuffles them again in the main
process, which costs copies; this is left out, in favour of these contenders.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS
from race.contenders.steps import lerp, mix, random_window
from race.setting import ALPHA, RATIO, SCALE, Setting

PREFETCH = 2
"""Number of batches that each DataLoader worker prefetches, which is the DataLoader's default."""
MIXING_THREADS = 4


def with_pillow(setting: Setting) -> Iterator[object]:
    """Yield (images, targets): worker processes decode and transform with Pillow, the main process mixes in plain torch."""
    return _mixed(_load(setting, _PillowTransform(setting)), setting)


def with_torchvision(setting: Setting) -> Iterator[object]:
    """Yield (images, targets) as `with_pillow` does, but with torchvision.io and its v2 transforms.

    As torchvision's documentation recommends, the workers crop and resize uint8 tensors, then convert to float32 and normalise.
    """
    return _mixed(_load(setting, _TorchvisionTransform(setting, normalises=True)), setting)


def tuned(setting: Setting) -> Iterator[object]:
    """Yield (images, targets) as fast as we could make it. On a CPU a batch is valid until the next one is taken.

    Workers decode, crop, resize and flip with torchvision in uint8, into one batch in shared memory: a quarter of the bytes of
    float32, passed on without a copy. On a CPU the main process normalises and mixes one pair at a time, which stays in the
    core's cache, into a preallocated output. It uses a few single-core threads: torch's own threads wait for each other while the
    workers use the cores, and took three to four times as long.
    """
    loaded = _load(setting, _TorchvisionTransform(setting, normalises=False), _collate_shared)
    return (_mixed_pair_by_pair if setting.device == "cpu" else _mixed)(loaded, setting)


def image_and_class(sample: Mapping[str, Any]) -> tuple[bytes, int]:
    """Return the encoded image and the class id of a webdataset sample."""
    return next(sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample), int(sample["cls"])


def _load(
    setting: Setting, prepare: Callable[[tuple[bytes, int]], Any], collate: Callable[[list[Any]], Any] | None = None
) -> Iterator[Any]:
    """Return endless batches of `prepare(sample)`, which `setting.threads` worker processes make and `collate`."""
    import webdataset

    samples = webdataset.WebDataset(setting.shards, resampled=True, shardshuffle=False).shuffle(1000)
    prepared = samples.map(image_and_class).map(prepare)
    batched = prepared.batched(setting.batch_size, **({} if collate is None else {"collation_fn": collate}))
    loader = webdataset.WebLoader(
        batched,
        batch_size=None,
        num_workers=setting.threads,
        prefetch_factor=PREFETCH,
        pin_memory=setting.device != "cpu",
    )
    return iter(loader)


def _mixed(loaded: Iterator[tuple[Tensor, Tensor]], setting: Setting) -> Iterator[object]:
    """Move batches to the device, and mix them there in plain torch."""
    draw = np.random.default_rng()
    for images, labels in loaded:
        images, labels = (part.to(setting.device, non_blocking=True) for part in (images, labels))
        yield mix(images, labels, setting, draw)


class _PillowTransform:
    """Does to a Pillow image what torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize do."""

    def __init__(self, setting: Setting) -> None:
        self._size, self._antialias = (setting.size, setting.size), setting.antialias
        self._draw: np.random.Generator | None = None
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __call__(self, sample: tuple[bytes, int]) -> tuple[Tensor, int]:
        encoded, label = sample
        if self._draw is None:  # each worker needs its own generator
            self._draw = np.random.default_rng()
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        x, y, width, height = random_window(*image.size, self._draw)
        box = (x, y, x + width, y + height)
        if self._antialias:
            image = image.resize(self._size, Image.Resampling.BILINEAR, box=box)
        else:
            image = image.transform(self._size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
        if self._draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(self._mean).div_(self._std), label


class _TorchvisionTransform:
    """Decodes, crops, resizes and flips in uint8, and optionally converts to float32 and normalises."""

    def __init__(self, setting: Setting, *, normalises: bool) -> None:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(setting.size, scale=SCALE, ratio=RATIO, antialias=setting.antialias)
        steps = [crop, v2.RandomHorizontalFlip()]
        if normalises:
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self._apply: Any = v2.Compose(steps)

    def __call__(self, sample: tuple[bytes, int]) -> tuple[Tensor, int]:
        from torchvision.io import decode_image

        encoded, label = sample
        return self._apply(decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode="RGB")), label


def _collate_shared(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    batch = torch.empty((len(samples), *samples[0][0].shape), dtype=torch.uint8)
    batch.share_memory_()  # type: ignore[no-untyped-call]
    for row, (pixels, _) in zip(batch, samples, strict=True):
        row.copy_(pixels)
    return batch, torch.tensor([label for _, label in samples])


def _mixed_pair_by_pair(loaded: Iterator[tuple[Tensor, Tensor]], setting: Setting) -> Iterator[object]:
    """Normalise and mix uint8 batches on the CPU, into memory that the next batch reuses."""
    torch.set_num_threads(1)
    threads = min(setting.threads, MIXING_THREADS)
    pool = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    scale, shift = 1 / (255 * std), -mean / std
    b, k, image = setting.batch_size, setting.k or 1, (3, setting.size, setting.size)
    out, pairs = torch.empty(b, k, *image), torch.empty(threads, 2, *image)

    def part(number: int, pixels: Tensor, partner: list[int], weights: Tensor) -> None:
        pair = pairs[number]
        for row in range(number, b, threads):
            if setting.k is None:
                torch.mul(pixels[row], scale, out=out[row, 0]).add_(shift)
            else:
                pair[0].copy_(pixels[row])
                pair[1].copy_(pixels[partner[row]])
                pair.mul_(scale).add_(shift)
                torch.mm(weights[row], pair.view(2, -1), out=out[row].view(k, -1))

    for pixels, labels in loaded:
        partner, lam = torch.randperm(b), torch.distributions.Beta(ALPHA, ALPHA).sample((b, k))
        weights = torch.stack((lam, 1 - lam), dim=2)
        list(pool.map(partial(part, pixels=pixels, partner=partner.tolist(), weights=weights), range(threads)))
        if setting.k is None:
            yield out.flatten(0, 1), labels
        else:
            dense = one_hot(labels, setting.num_classes).to(torch.float32)
            yield out.flatten(0, 1), lerp(dense, partner, lam).flatten(0, 1)
