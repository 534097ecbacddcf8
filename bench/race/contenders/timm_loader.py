"""timm: `create_dataset("wds/...")` and `create_loader` with its mixup, as timm's train.py sets them up.

Each worker process decodes and resizes with Pillow. With the prefetcher, train.py's default, mixing is `FastCollateMixup`, in
the workers and on uint8, whose result is rounded to uint8; images become float32 and are normalised after the hand-over. One
weight a batch (train.py's default), the partner is the batch reversed, so B is even. timm mixes once a row: K = 1 and no
more. Its resize is Pillow's, which always has antialias. The route to a GPU has not run yet.

The shards are named by an `_info.json`, as timm wants, and `num_samples` (train.py's --train-num-samples) is so large that no
epoch ends: after each, its workers would begin with empty buffers.

Tried: without the prefetcher, `Mixup` on float32 in the main process, as train.py then does, was slower (a ratio of 0.83); a
third worker on two cores made no difference.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from timm.data import FastCollateMixup, create_dataset, create_loader

from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from race.setting import ALPHA, RATIO, SCALE, Setting

ENDLESS = 10**12


def batches(setting: Setting) -> Iterator[object]:
    """Endless (images, targets)."""
    device = torch.device(setting.device)
    mixup = FastCollateMixup(mixup_alpha=ALPHA, label_smoothing=0.0, num_classes=setting.num_classes)
    key = setting.label.partition(":")[2]
    with tempfile.TemporaryDirectory() as root:
        _describe(setting.shards, Path(root))
        dataset = create_dataset(
            "wds/shards",
            root=root,
            split="train",
            is_training=True,
            batch_size=setting.batch_size,
            num_samples=ENDLESS,
            **({"target_key": key} if key else {}),
        )
    loader = create_loader(
        dataset,
        input_size=(3, setting.size, setting.size),
        batch_size=setting.batch_size,
        is_training=True,
        scale=SCALE,
        ratio=RATIO,
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        # a worker without a shard of its own would find no samples
        num_workers=min(setting.threads, len(setting.shards)),
        collate_fn=None if setting.k is None else mixup,
        use_prefetcher=True,
        device=device,
        img_dtype=getattr(torch, setting.dtype),
        pin_memory=device.type == "cuda",
    )
    yield from loader


def _describe(shards: tuple[str, ...], root: Path) -> None:
    # of the lengths training reads the sum alone, and `num_samples` goes before it
    split = {"name": "train", "filenames": [str(Path(shard).resolve()) for shard in shards], "shard_lengths": []}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": {**split, "num_samples": ENDLESS}}}))
