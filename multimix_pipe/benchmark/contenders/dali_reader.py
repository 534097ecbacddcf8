"""NVIDIA's way: DALI's own reader of WebDataset shards, its PyTorch iterator, and mixing in torch outside of DALI.

The graph is that of NVIDIA's DeepLearningExamples (ConvNets: `image_random_crop`, `resize`, `crop_mirror_normalize`), with
the tars' reader in the place of the files', and so is mixing the batch that the iterator hands out. Index files are written
before the measurement: with them the reader need not scan the tars when it starts; the rate is the same. The iterator has no
size, so that the reader goes on over epochs without a pause. DALI decodes only the crop's window. Its GPU decoder and resize
are written as in NVIDIA's examples and have not run here yet.

Tried: a queue of 3 batches made no difference.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimix_pipe.benchmark.contenders.mixing import mix
from multimix_pipe.benchmark.setting import RATIO, SCALE, Setting
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from multimix_pipe.shards.dali_index import write_dali_indexes
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS

TITLE = "DALI readers.webdataset, mixed in torch"
NEEDS = ("nvidia.dali",)
MIXES = None

PREFETCH = 2


def queued(setting: Setting) -> int:
    """DALI's queue, and the batch that the iterator has already asked for."""
    return PREFETCH + 2


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        indexes = write_dali_indexes([Path(shard) for shard in setting.shards], folder)
        pipeline = _pipeline(setting, [str(index) for index in indexes])
        iterator = DALIGenericIterator(pipeline, ["images", "labels"], size=-1, last_batch_policy=LastBatchPolicy.FILL)
    for (batch,) in iterator:
        labels = torch.tensor([_class_id(row, setting.label) for row in batch["labels"].numpy()])
        yield mix(batch["images"], labels.to(batch["images"].device), setting, draw)


def _pipeline(setting: Setting, indexes: list[str]) -> Any:
    from nvidia.dali import Pipeline

    device = torch.device(setting.device)
    pipeline = Pipeline(
        batch_size=setting.batch_size,
        num_threads=setting.threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=PREFETCH,
        seed=0,
    )
    with pipeline:
        pipeline.set_outputs(*_define(setting, indexes))
    return pipeline


def _define(setting: Setting, indexes: list[str]) -> tuple[Any, Any]:
    from nvidia.dali import fn as operators
    from nvidia.dali import types

    fn: Any = operators  # its annotations know no reader with outputs
    on_gpu = setting.device != "cpu"
    place = "gpu" if on_gpu else "cpu"
    encoded, labels = fn.readers.webdataset(
        paths=list(setting.shards),
        index_paths=indexes,
        ext=[";".join(IMAGE_EXTENSIONS), setting.label.partition(":")[0]],
        random_shuffle=True,
        name="reader",
    )
    images = fn.decoders.image_random_crop(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        random_area=SCALE,
        random_aspect_ratio=RATIO,
        # DeepLearningExamples' sizes: room for all of ImageNet's images without new allocations
        **({"device_memory_padding": 211025920, "host_memory_padding": 140544512} if on_gpu else {}),
    )
    images = fn.resize(
        images,
        device=place,
        size=[setting.size, setting.size],
        interp_type=types.INTERP_LINEAR,
        antialias=setting.antialias,
    )
    images = fn.crop_mirror_normalize(
        images,
        device=place,
        dtype=types.FLOAT16 if setting.dtype == "float16" else types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in IMAGENET_MEAN],
        std=[255 * value for value in IMAGENET_STD],
        mirror=fn.random.coin_flip(probability=0.5),
    )
    return images, fn.pad(labels)


def _class_id(text: Any, label: str) -> int:
    """The class id in the bytes of a label member, a uint8 array that may end in zeros."""
    content = text.tobytes().rstrip(b"\0")
    kind, _, key = label.partition(":")
    return int(json.loads(content)[key] if kind == "json" else content)
