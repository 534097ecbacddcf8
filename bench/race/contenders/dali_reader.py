"""NVIDIA's approach: DALI's own WebDataset reader, its PyTorch iterator, and mixing in torch outside of DALI.

The graph is that of NVIDIA's DeepLearningExamples (ConvNets: `image_random_crop`, `resize`, `crop_mirror_normalize`), with the
tar reader instead of the file reader; like there, the batch that the iterator returns is mixed. Without index files the reader
scans the tars once, when it starts. The iterator has no size, so the reader continues from epoch to epoch without a pause. DALI
decodes only the crop's window.

A queue of 3 batches or index files made no difference to the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn as operators
from nvidia.dali import pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS
from race.contenders.steps import mix
from race.setting import RATIO, SCALE, Setting

PREFETCH = 2

fn: Any = operators  # DALI's annotations lack readers with outputs


def batches(setting: Setting) -> Iterator[object]:
    """Yield (images, targets) endlessly."""
    return batches_ahead(setting, PREFETCH)


def batches_ahead(setting: Setting, prefetch: int, *, fancy_upsampling: bool = False) -> Iterator[object]:
    """Do so with a queue of that length. With `fancy_upsampling` a GPU upsamples chroma as CPUs do, and as this package does."""
    draw = np.random.default_rng(0)
    device = torch.device(setting.device)
    pipeline = classification(
        setting,
        fancy_upsampling,
        batch_size=setting.batch_size,
        num_threads=setting.threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=prefetch,
        seed=0,
    )
    iterator = DALIGenericIterator(pipeline, ["images", "labels"], size=-1, last_batch_policy=LastBatchPolicy.FILL)
    for (batch,) in iterator:
        labels = torch.tensor([int(row.tobytes().rstrip(b"\0")) for row in batch["labels"].numpy()])
        yield mix(batch["images"], labels.to(batch["images"].device), setting, draw)


@pipeline_def  # type: ignore[untyped-decorator]
def classification(setting: Setting, fancy_upsampling: bool = False) -> tuple[Any, Any]:
    """Output normalised images (3, H, W), and the bytes of the label members, padded with zeros."""
    on_gpu = setting.device != "cpu"
    encoded, labels = fn.readers.webdataset(
        paths=setting.shards,
        ext=[";".join(IMAGE_EXTENSIONS), "cls"],
        random_shuffle=True,
        name="reader",
    )
    images = fn.decoders.image_random_crop(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        random_area=SCALE,
        random_aspect_ratio=RATIO,
        # sizes from DeepLearningExamples: enough for every ImageNet image without new allocations
        **({"device_memory_padding": 211025920, "host_memory_padding": 140544512} if on_gpu else {}),
        **({"jpeg_fancy_upsampling": fancy_upsampling} if on_gpu else {}),
    )
    images = fn.resize(
        images, size=[setting.size, setting.size], interp_type=types.INTERP_LINEAR, antialias=setting.antialias
    )
    images = fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT16 if setting.dtype == "float16" else types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in IMAGENET_MEAN],
        std=[255 * value for value in IMAGENET_STD],
        mirror=fn.random.coin_flip(probability=0.5),
    )
    return images, fn.pad(labels)
