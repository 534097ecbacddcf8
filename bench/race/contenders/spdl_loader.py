"""Meta's SPDL: a pipeline of threads that decode with FFmpeg, as its documentation recommends for images.

The source reads whole tars and splits them with `spdl.io.iter_tarfile`; shards, and the samples of each, come in random order.
One stage decodes single images, with crop, scale and flip in FFmpeg's filter graph; the next copies the frames into one buffer
without a tensor per image (SPDL's "best practice") and normalises them; batches are mixed in torch. For a GPU, uint8 batches are
sent by `spdl.io.transfer_tensor_h2d`, and normalised and mixed there. Images are decoded on the CPU, because the package on PyPI
is built without nvJPEG. The GPU path has not been run yet.

FFmpeg scales the planes of the JPEG and converts them to RGB in one step: `bilinear` antialiases as Pillow does, `fast_bilinear`
does not. The window's corner is rounded to the chroma grid (even numbers for 4:2:0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from race.contenders.steps import mix, normalise, random_window
from race.contenders.webdataset_loaders import image_and_class
from race.setting import Setting

PREFETCH = 3
"""Number of batches in the sink, as in SPDL's own examples."""


def batches(setting: Setting) -> Iterator[object]:
    """Yield (images, targets) endlessly."""
    spdl.io.decode_config()  # raises if FFmpeg is missing; otherwise a pipeline thread would raise, and the pipeline hang
    draw = np.random.default_rng(0)
    algorithm = "bilinear" if setting.antialias else "fast_bilinear"

    def decode(sample: tuple[Any, int]) -> tuple[Any, int]:
        encoded, label = sample
        packets = spdl.io.demux_image(encoded)
        x, y, width, height = random_window(packets.width, packets.height, draw)
        flip = "hflip," if draw.random() < 0.5 else ""
        steps = (
            f"crop={width}:{height}:{x}:{y},scale={setting.size}:{setting.size}:flags={algorithm},{flip}format=rgb24"
        )
        return spdl.io.decode_packets(packets, filter_desc=steps), label

    def collate(samples: list[tuple[Any, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        frames, labels = zip(*samples, strict=True)
        images = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)
        if setting.device == "cpu":
            return normalise(images), torch.tensor(labels)
        sent: tuple[torch.Tensor, torch.Tensor] = spdl.io.transfer_tensor_h2d((images, torch.tensor(labels)))
        return sent

    pipeline = (
        PipelineBuilder()
        .add_source(_samples(setting))
        .pipe(decode, concurrency=setting.threads, output_order="completion")
        .aggregate(setting.batch_size, drop_last=True)
        .pipe(collate)
        .add_sink(PREFETCH)
        .build(num_threads=setting.threads + 1)  # one to collate while the others decode
    )
    with pipeline.auto_stop():
        for images, labels in pipeline:
            yield mix(images, labels, setting, draw)


def _samples(setting: Setting) -> Iterator[tuple[Any, int]]:
    """Yield (encoded image, class id) endlessly."""
    shuffle = np.random.default_rng(1)
    while True:
        for position in shuffle.permutation(len(setting.shards)):
            with open(setting.shards[position], "rb") as file:
                members = spdl.io.iter_tarfile(file.read())
            samples: dict[str, dict[str, Any]] = {}
            for name, content in members:
                folder, _, base = name.rpartition("/")
                key, _, extension = base.partition(".")
                samples.setdefault(f"{folder}/{key}", {})[extension] = bytes(content) if extension == "cls" else content
            order = [sample for sample in samples.values() if "cls" in sample]
            for sample in shuffle.permutation(len(order)):
                yield image_and_class(order[sample])
