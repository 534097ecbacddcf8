"""webdataset's part of the contenders that read with it, as its ResNet-50 example sets it up.

Shards are drawn with replacement (`resampled=True`): endless, and any number of workers is served by any number of shards. The
example also takes batches apart and shuffles them again in the main process, which costs copies; that is left out, in the peers'
favour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from multimix_pipe.benchmark.contenders.mixing import mix
from multimix_pipe.benchmark.setting import Setting
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS

PREFETCH = 2
"""Batches that each DataLoader worker keeps ready: the DataLoader's own default."""


def image_and_class(sample: Mapping[str, Any], label: str) -> tuple[bytes, int]:
    """The encoded image and the class id of a webdataset sample; `label` is "cls" or "json:KEY"."""
    encoded: bytes = next(sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample)
    kind, _, key = label.partition(":")
    return encoded, int(json.loads(sample["json"])[key] if kind == "json" else sample[kind])


def load_batches(
    setting: Setting,
    prepare: Callable[[tuple[bytes, int]], Any],
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Endless batches of `prepare(sample)`, made in `setting.threads` worker processes; `collate` forms them there."""
    import webdataset

    samples = webdataset.WebDataset(list(setting.shards), resampled=True, shardshuffle=False).shuffle(1000)
    prepared = samples.map(partial(image_and_class, label=setting.label)).map(prepare)
    batched = prepared.batched(setting.batch_size, **({} if collate is None else {"collation_fn": collate}))
    loader = webdataset.WebLoader(
        batched,
        batch_size=None,
        num_workers=setting.threads,
        prefetch_factor=PREFETCH,
        pin_memory=setting.device != "cpu",
    )
    return iter(loader)


def kept_ready(setting: Setting) -> int:
    """Batches that the workers of `load_batches` have ready: their contenders' `queued`."""
    return PREFETCH * setting.threads


def mixed_batches(setting: Setting, prepare: Callable[[tuple[bytes, int]], Any]) -> Iterator[object]:
    """`load_batches` of (normalised image, class id), brought to the device and mixed there by the main process."""
    draw = np.random.default_rng()
    for images, labels in load_batches(setting, prepare):
        images, labels = (part.to(setting.device, non_blocking=True) for part in (images, labels))
        yield mix(images, labels, setting, draw)
