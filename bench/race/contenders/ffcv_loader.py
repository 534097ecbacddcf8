"""FFCV: its own file, written once before the measurement, and its compiled pipeline, as its documentation sets it up.

The file keeps the shards' JPEGs as they are: no raw pixels, no smaller images, so that FFCV decodes what the others
decode. It is read through the page cache (`os_cache`) in random order. K = 1 is FFCV's own ImageMixup and LabelMixup with a
weight for each row, on uint8; the partner is the row before. More are mixed in torch. On a GPU uint8 batches are sent by
`ToDevice` and normalised in torch: FFCV's NormalizeImage needs cupy there; that route has not run yet.

FFCV decodes with libjpeg-turbo's fast DCT, the whole image and not only the window, and resizes with OpenCV's INTER_AREA:
`antialias` cannot be chosen, and what it gives is near to neither. Its batches lie in buffers that it uses again a few
batches later. It draws no random numbers from a seed of its caller's, but from NumPy's and numba's global state.

An epoch repeats the samples until there are a million, all in one random order: at the start of each, FFCV makes its threads
and buffers anew, which would weigh on a small set of shards. The first batch comes after numba has compiled, in half a minute
or more.

Tried: uint8 out of FFCV and normalising in torch, and 2 batches ahead, made no difference.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
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
from race.contenders.steps import mix, normalise
from race.setting import ALPHA, RATIO, SCALE, Setting

PREFETCH = 3
"""Batches that FFCV makes in advance: its own default."""
EPOCH = 2**20


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "samples.beton")
        index = open_index(list(setting.shards), label=setting.label, progress=False)
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
        epoch = iter(loader)  # maps the file, which can be read from then on without its name
    while True:
        for images, labels in epoch:
            images = normalise(images) if images.dtype == torch.uint8 else images
            if setting.k == 1:
                yield images.to(getattr(torch, setting.dtype)), labels
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
    """An image given as its file's bytes: a JPEG of RGB or grey is stored as it is; FFCV's field would encode it anew.

    All else is encoded as the JPEG that FFCV's field makes of it.
    """

    def __init__(self) -> None:
        super().__init__(write_mode="jpg")

    def encode(self, destination: Any, image: bytes, malloc: Any) -> None:
        """Write one image: its place and size to `destination`, its bytes to what `malloc` gives."""
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
    """Write all samples of `index` that have no problem, as the fields `image` and `label`."""
    writer = DatasetWriter(str(target), {"image": EncodedImage(), "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(_Samples(index), indices=np.flatnonzero(index.problem == 0).tolist())
