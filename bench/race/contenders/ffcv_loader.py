"""FFCV: a file of its own format, written once before the measurement, and its compiled pipeline, as in its documentation.

The file stores the shards' JPEGs unchanged rather than raw pixels or smaller images, so that FFCV decodes what the others decode.
It is read through the page cache (`os_cache`) in random order. K = 1 uses FFCV's own ImageMixup and LabelMixup with one weight
per row, on uint8; the partner is the previous row. For larger K, batches are mixed in torch. On a GPU, uint8 batches are sent by
`ToDevice` and normalised in torch, because FFCV's NormalizeImage needs cupy there; this path has not been run yet.

FFCV decodes the whole image, not only the window, with libjpeg-turbo's fast DCT, and resizes with OpenCV's INTER_AREA:
`antialias` cannot be chosen, and the result resembles neither choice. It reuses a batch's buffers a few batches later. It cannot
be seeded by its caller: its random numbers come from the global state of NumPy and Numba.

An epoch repeats the samples until there are a million, in one random order, because FFCV recreates its threads and buffers at the
start of an epoch, which would slow down a small set of shards. The first batch takes half a minute or more, for Numba to compile.

Returning uint8 from FFCV and normalising in torch made no difference, and neither did 2 batches ahead.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv import transforms as ops
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter
from PIL import Image

from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from multimix_pipe.shards.index import Index, open_index
from race.contenders.steps import mix
from race.setting import ALPHA, RATIO, SCALE, Setting

PREFETCH = 3
"""Number of batches that FFCV prepares in advance, which is its default."""
EPOCH = 2**20


def batches(setting: Setting) -> Iterator[object]:
    """Yield (images, targets) endlessly."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "samples.beton")
        index = open_index(setting.shards, progress=False)
        _write_file(index, file, setting.threads)
        samples = np.arange(np.count_nonzero(index.problem == 0), dtype=np.uint64)
        loader = Loader(
            str(file),
            batch_size=setting.batch_size,
            num_workers=setting.threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=np.tile(samples, -(-EPOCH // len(samples))),
            drop_last=True,
            batches_ahead=PREFETCH,
            custom_fields={"image": EncodedImage},
            pipelines={"image": _images(setting), "label": _labels(setting)},
        )
        epoch = iter(loader)  # maps the file into memory, so that its folder can be removed
    while True:
        for images, labels in epoch:
            if setting.k == 1:  # mixed and, on a CPU, normalised
                yield mix(images, labels, replace(setting, k=None), draw)
            else:
                yield mix(images, labels.flatten(), setting, draw)
        epoch = iter(loader)


def _images(setting: Setting) -> list[Any]:
    size = (setting.size, setting.size)
    steps = [RandomResizedCropRGBImageDecoder(size, scale=SCALE, ratio=RATIO), ops.RandomHorizontalFlip()]
    steps += [ops.ImageMixup(alpha=ALPHA, same_lambda=False)] if setting.k == 1 else []
    if setting.device != "cpu":
        return [*steps, ops.ToTensor(), ops.ToDevice(torch.device(setting.device)), ops.ToTorchImage()]
    mean, std = (255 * np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return [*steps, ops.NormalizeImage(mean, std, np.float32), ops.ToTensor(), ops.ToTorchImage(channels_last=False)]


def _labels(setting: Setting) -> list[Any]:
    mixing = [ops.LabelMixup(alpha=ALPHA, same_lambda=False)] if setting.k == 1 else []
    sending = [] if setting.device == "cpu" else [ops.ToDevice(torch.device(setting.device))]
    dense = [ops.MixupToOneHot(setting.num_classes)] if setting.k == 1 else []
    return [IntDecoder(), *mixing, ops.ToTensor(), *sending, *dense]


class EncodedImage(RGBImageField):  # type: ignore[misc]
    """An image given as the bytes of its file. RGB and grayscale JPEGs are stored unchanged, where FFCV's field re-encodes them.

    All other images are encoded as JPEG by FFCV's field.
    """

    def __init__(self) -> None:
        super().__init__(write_mode="jpg")

    def encode(self, destination: Any, image: bytes, malloc: Any) -> None:
        """Write one image: its size and location to `destination`, its bytes to memory from `malloc`."""
        with Image.open(io.BytesIO(image)) as picture:
            if picture.format != "JPEG" or picture.mode not in ("RGB", "L"):
                super().encode(destination, np.array(picture.convert("RGB")), malloc)
                return
            width, height = picture.size
        destination["mode"], destination["width"], destination["height"] = 0, width, height
        destination["data_ptr"], storage = malloc(len(image))
        storage[:] = np.frombuffer(image, dtype=np.uint8)


class _Samples:
    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        index = self._index
        with open(index.shards[index.shard[i]], "rb") as file:
            return os.pread(file.fileno(), int(index.size[i]), int(index.offset[i])), int(index.label[i])


def _write_file(index: Index, target: Path, workers: int) -> None:
    """Write all samples of `index` without problems, as the fields `image` and `label`."""
    writer = DatasetWriter(str(target), {"image": EncodedImage(), "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(_Samples(index), indices=np.flatnonzero(index.problem == 0).tolist())
