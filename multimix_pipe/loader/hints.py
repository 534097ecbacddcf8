"""Says what the arguments of other loaders are called here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches

from multimix_pipe.config import TrainTransform
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import MultiMix

_EQUIVALENTS = {
    "num_workers": "num_threads= sets the decoding threads; there are no worker processes",
    "drop_last": 'use last_batch="drop", "wrap" or "partial"',
    "pin_memory": 'use device="cuda": batches are on the GPU already',
    "pin_memory_device": 'use device="cuda:1": batches are on that GPU already',
    "prefetch_factor": "prefetch= is the number of batches prepared ahead",
    "persistent_workers": "threads live until the loader is closed",
    "multiprocessing_context": "there are no worker processes",
    "worker_init_fn": "there are no worker processes; seed= determines all draws",
    "timeout": "there are no worker processes to wait for",
    "generator": "seed= determines all draws",
    "sampler": "use weights=, samples= or exclude=; each process takes its share by rank= and world_size=",
    "batch_sampler": "use batch_size=, shuffle=, weights= or samples=",
    "collate_fn": "batches are tensors already; for other members of a sample, join them by batch.keys",
    "interpolation": "images are resized bilinearly, with or without TrainTransform(antialias=)",
    **dict.fromkeys(("workers", "num_threads_per_worker"), "num_threads= sets the decoding threads"),
    **dict.fromkeys(("bs", "batch"), "use batch_size="),
    **dict.fromkeys(
        ("dataset", "root", "data", "path", "urls"),
        "the first argument is the shards: a path, glob, brace pattern or folder",
    ),
    **dict.fromkeys(
        ("split", "train", "is_training"), "name the split's shards: open_loader('shards/train', ...), 'shards/val'"
    ),
    "val": "open a second loader for the validation shards, with transform=EvalTransform()",
    "epochs": "each iteration is one epoch; mix={0: ..., 280: None} changes the mixing by epoch",
    "download": "URLs of a server or an object store are shards too, with cache_dir=",
    **dict.fromkeys(
        ("augment", "auto_augment", "color_jitter", "re_prob"),
        "only crops and flips are built in; augment the batches of expand=False, then apply_mix",
    ),
    "mixup_alpha": "use mix=MultiMix(alpha=)",
    "mixup": "use mix=MultiMix(alpha=)",
    "cutmix_alpha": 'use mix=MultiMix(method="cutmix", alpha=)',
    "cutmix": 'use mix=MultiMix(method="cutmix")',
    **dict.fromkeys(("image_size", "crop_size"), "use transform=TrainTransform(size=) or EvalTransform(size=)"),
    "hflip": "use transform=TrainTransform(flip=)",
    **{item.name: f"use mix=MultiMix({item.name}=)" for item in fields(MultiMix)},
    **{item.name: f"use transform=TrainTransform({item.name}=)" for item in fields(TrainTransform)},
    **{
        name: f"use transform=TrainTransform({name}=) or EvalTransform({name}=)"
        for name in ("size", "antialias", "mean", "std")
    },
}


def refuse_unknown(unknown: Mapping[str, object], known: Iterable[str]) -> None:
    """Raise ConfigError, which names the equivalent, if there are `unknown` arguments."""
    for name in unknown:
        near = get_close_matches(name, known, 1)
        hint = _EQUIVALENTS.get(name) or (
            f"did you mean {near[0]}=?" if near else "help(open_loader) lists those it has"
        )
        raise ConfigError(f"open_loader has no argument {name}=; {hint}")
