"""timm: `create_dataset("wds/...")` and `create_loader` with its mixup, as timm's train.py sets them up.

Worker processes decode and resize with Pillow. With the prefetcher, train.py's default, they also mix with `FastCollateMixup`, in
uint8 and with a uint8 result; the main process converts the images to float32 and normalises them. There is one weight per batch
(train.py's default), and partners come from the reversed batch, so B must be even. timm mixes each row once, so only K = 1 is
possible. Pillow's resize always antialiases. The GPU path has not been run yet.

timm reads the shards' names from an `_info.json`. `num_samples` (train.py's --train-num-samples) is so large that no epoch ends,
because after each epoch the workers would start with empty buffers.

Without the prefetcher, train.py uses `Mixup` on float32 in the main process, which was slower (a ratio of 0.83). A third worker
on two cores made no difference.
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
    """Yield (images, targets) endlessly."""
    device = torch.device(setting.device)
    mixup = FastCollateMixup(mixup_alpha=ALPHA, label_smoothing=0.0, num_classes=setting.num_classes)
    with tempfile.TemporaryDirectory() as root:
        _describe(setting.shards, Path(root))
        dataset = create_dataset(
            "wds/shards",
            root=root,
            split="train",
            is_training=True,
            batch_size=setting.batch_size,
            num_samples=ENDLESS,
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
        # a worker without a shard would have no samples
        num_workers=min(setting.threads, len(setting.shards)),
        collate_fn=None if setting.k is None else mixup,
        use_prefetcher=True,
        device=device,
        img_dtype=getattr(torch, setting.dtype),
        pin_memory=device.type == "cuda",
    )
    yield from loader


def _describe(shards: list[str], root: Path) -> None:
    # training only uses the sum of the shard lengths, and `num_samples` overrides it
    split = {"name": "train", "filenames": [str(Path(shard).resolve()) for shard in shards], "shard_lengths": []}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": {**split, "num_samples": ENDLESS}}}))
