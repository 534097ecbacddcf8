"""`open_loader`: checks and resolves its arguments, and assembles a loader."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray

from multimix_pipe.config import (
    Backend,
    Decode,
    DType,
    Keys,
    LastBatch,
    OnBadSample,
    Shuffle,
    Targets,
    TrainTransform,
    Transform,
)
from multimix_pipe.errors import ConfigError
from multimix_pipe.loader.backend import choose_backend
from multimix_pipe.loader.hints import refuse_unknown
from multimix_pipe.loader.loader import Loader
from multimix_pipe.loader.memory import check_batch_fits
from multimix_pipe.loader.rank import choose_device, find_world, processes_here
from multimix_pipe.loader.samples import choose_samples
from multimix_pipe.mixing import MixSchedule, MultiMix
from multimix_pipe.plan import Plan
from multimix_pipe.runtime.bad_samples import BadSamples
from multimix_pipe.runtime.context import LoaderConfig, LoaderContext
from multimix_pipe.shards.classes import Classes
from multimix_pipe.shards.index import Index, open_index
from multimix_pipe.shards.reader import ShardReader

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def open_loader(
    shards: Source,
    *,
    batch_size: int,
    num_classes: int | None = None,
    classes: Classes | None = None,
    mix: MultiMix | Mapping[int, MultiMix | None] | Literal["auto"] | None = "auto",
    transform: Transform = TrainTransform(),
    backend: Backend = "auto",
    device: str | torch.device = "auto",
    dtype: DType | torch.dtype = "float32",
    channels_last: bool = False,
    shuffle: Shuffle | Literal["auto"] = "auto",
    last_batch: LastBatch | Literal["auto"] = "auto",
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    on_bad_sample: OnBadSample = "raise",
    max_bad: int | float | None = None,
    num_threads: int | None = None,
    prefetch: int = 2,
    decode: Decode = "fast",
    targets: Targets = "rows",
    label: str | None = "cls",
    label_offset: int = 0,
    multilabel: bool = False,
    exif: bool = False,
    expand: bool = True,
    exclude: Keys | None = None,
    samples: Keys | None = None,
    weights: Sequence[float] | NDArray[np.floating] | Literal["balanced"] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **unknown: NoReturn,
) -> Loader:
    """Open WebDataset shards as a loader of mixed batches, a replacement for `torch.utils.data.DataLoader`.

        loader = open_loader("train-{000000..000146}.tar", batch_size=64, num_classes=1000, mix=MultiMix(k=5))
        for images, targets in loader:  # one epoch: (320, 3, 224, 224) images, (320, 1000) targets
            loss = MultiMixLoss()(model(images), targets)

    The first opening indexes the shards and saves the index next to them. Threads start with the first batch.

    Args:
        shards: a path, glob, brace pattern, folder or URL (http, s3, gs, hf, ...; needs `cache_dir`), or a list of these.
        batch_size: B, the samples decoded per process and step. With K members per pair the model sees B*K rows.
        num_classes: the number of classes; labels must lie in [0, num_classes). Default: the number of names in `classes`, else
            in the classes.json beside the shards.
        classes: the class names in the order of their ids, a file of them, or a mapping from name to id. If a classes.json
            beside the shards has others, that is an error, so give a second set the first one's:
            `open_loader("val", classes=train.classes, ...)`. Default: those of classes.json.
        mix: the mixing, or None for no mixing. Default: `MultiMix()` with a TrainTransform, None with an EvalTransform. By epoch:
            {0: MultiMix(...), 280: None} trains without mixing from epoch 280 on, and with targets of the same form.
        transform: `TrainTransform` (random crop and flip) or `EvalTransform` (resize and centre crop).
        backend: "dali", "torch", or "auto" for DALI if it can be imported and runs on `device`, else torch.
        device: the device of the batches: "cpu", "cuda", "cuda:1", "mps", or "auto". "cuda" is the device
            set by `torch.cuda.set_device`, else the one of the local rank.
        dtype: type of the images: "float32", "float16" or "bfloat16", or torch's. They are mixed in float32 and rounded once.
        channels_last: whether the images have the channels_last memory format.
        shuffle: "global" (a random permutation), "window" (sequential reads, shuffled within a few shards at a time; the shards
            must have been written in random order) or "none". Default: "global" to train, "none" to evaluate.
        last_batch: "wrap" (every process does the same number of full steps; the epoch's first samples fill up the last step),
            "drop" (an incomplete last step is dropped) or "partial" (each sample exactly once; processes may differ by one
            step). Default: "wrap" to train, "partial" to evaluate.
        seed: the seed of all draws, 0 .. 2**64-1. It determines order, crops, flips, partners and weights, on every machine, with
            every backend and any number of processes.
        rank: the rank of this process. Default: from torch.distributed, else from the environment of torchrun, Open MPI, MPICH or
            `srun`, else 0. It is looked up again at each epoch's start, so the loader may be opened before the process group.
        world_size: the number of processes, given together with `rank`. Default: from the same source, else 1.
        on_bad_sample: "raise", or "replace" to show another sample, chosen deterministically; `Loader.bad_samples` lists those
            replaced. With "replace", a damaged or vanished shard costs only the samples that can no longer be read.
        max_bad: with "replace", the largest number of different bad samples: an int, or a float in [0, 1] for a fraction of the
            samples used. One more is an error, on opening if indexing finds it, else at its step. Default: no limit.
        num_threads: decoding threads. Default: the usable cores, divided by the processes on this machine; with DALI on a GPU
            three quarters of that.
        prefetch: batches prepared ahead, 1 .. 64.
        decode: for DALI on a GPU, without effect elsewhere. "fast" shares each batch between two JPEG decoders: the same batch
            gives the same pixels, but an image may differ by up to 3 of 255 in a batch of other samples. "exact" uses one
            decoder, at half the rate: an image's pixels never depend on its batch.
        targets: "rows" for dense (B*K, num_classes) targets, or "pairs" for (labels, partners' labels, lam).
        label: where labels are: "cls" or "txt" for the member of that extension, "json:KEY" for a field of the json member,
            "folder" for the last folder of the key. A label is a class id or one of `classes`. None: there are no labels;
            `mix` must be None, and labels and targets are -1.
        label_offset: subtracted from labels that are numbers: 1 for labels 1..1000.
        multilabel: whether a sample may have several labels, or none: ids or names in `label`, separated by commas or spaces
            (in json: a list of ids or names, or num_classes times 0 or 1). Labels are then (B, num_classes) float32 of 0 and 1,
            and targets lam*y + (1-lam)*y'. Train with `MultiMixLoss(multilabel=True)`.
        exif: whether to apply the images' EXIF orientation. Off by default, as is usual in ImageNet training.
        expand: if False, nothing is mixed: images are (B, C, H, W), or (B*K, C, H, W) with crops="each"; targets are their
            labels, and `batch.plan` says how to mix.
        exclude: keys of samples to leave out: a list, or the path of a text file with one key per line.
        samples: keys of the samples to use, likewise. Default: all.
        weights: a number >= 0 for each sample used, in stored order. Samples are drawn with replacement, in proportion to it.
            "balanced": 1 / the number of samples of the same class, so that each class is drawn equally often.
        unknown: not accepted. An argument of DataLoader gets an error that names the equivalent.
        cache_dir: a folder for downloaded shards, and for indices of shards whose folder is read-only.

    Returns:
        A `Loader`. Each `iter()` of it is one epoch of `Batch`es.

    Raises:
        ConfigError: an argument is invalid, or arguments contradict each other.
        ShardError: a shard is missing or damaged.
        BadSampleError: a sample has no valid label (with "raise"), or indexing finds more than `max_bad` bad samples.
        MissingBackendError: backend="dali", and DALI cannot be imported or does not run on `device`.
        MultiMixError: the index cannot be written.

    Iterating raises BadSampleError at the step of a bad sample, after all batches before it.
    """
    settings = dict(locals())
    refuse_unknown(settings.pop("unknown"), settings)
    return Loader(open_context(settings.pop("shards"), **settings))


def open_context(
    shards: Source,
    *,
    num_classes: int | None = None,
    classes: Classes | None = None,
    label: str | None = "cls",
    label_offset: int = 0,
    multilabel: bool = False,
    transform: Transform = TrainTransform(),
    mix: MultiMix | Mapping[int, MultiMix | None] | Literal["auto"] | None = "auto",
    shuffle: Shuffle | Literal["auto"] = "auto",
    last_batch: LastBatch | Literal["auto"] = "auto",
    device: str | torch.device = "auto",
    dtype: DType | torch.dtype = "float32",
    rank: int | None = None,
    world_size: int | None = None,
    num_threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> LoaderContext:
    """Return the parts of a loader. The arguments are those of `open_loader`; the ones named here have None or "auto" resolved.

    Benchmarks and tests pass the result to an executor without a loader, or to a `Loader` with an executor of their own.
    """
    trains = getattr(transform, "random", True)
    config = LoaderConfig(
        num_classes=1 if num_classes is None else num_classes,
        label=label,
        multilabel=multilabel,
        transform=transform,
        mix=_resolved_mix(mix, mixes=trains and label is not None),
        shuffle=("global" if trains else "none") if shuffle == "auto" else shuffle,
        last_batch=("wrap" if trains else "partial") if last_batch == "auto" else last_batch,
        device=str(device),
        dtype=cast(DType, str(dtype).removeprefix("torch.")),
        rank=rank,
        world_size=world_size,
        num_threads=num_threads,
        **settings,
    )
    local_world_size = processes_here(find_world(config.rank, config.world_size))
    index = open_index(
        shards,
        label=label,
        classes=classes,
        label_offset=label_offset,
        multilabel=multilabel,
        num_classes=num_classes,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        keep_damaged=config.on_bad_sample == "replace",
    )
    if label is not None:
        config = replace(config, num_classes=_number_of_classes(num_classes, classes, index, label))
    chosen = choose_device(config.device)
    backend = choose_backend(config.backend, chosen)
    check_batch_fits(config, chosen)
    samples = choose_samples(index, config)
    return LoaderContext(
        index=index,
        plan=Plan(samples, config.transform, config.mix, config.shuffle, config.seed, config.batch_size),
        reader=ShardReader(index),
        bad_samples=BadSamples(index, samples.sample_id, config.on_bad_sample, config.max_bad),
        config=config,
        backend=backend,
        device=chosen,
        local_world_size=local_world_size,
        classes=index.classes,
    )


def _resolved_mix(
    mix: MultiMix | Mapping[int, MultiMix | None] | Literal["auto"] | None, *, mixes: bool
) -> MultiMix | MixSchedule | None:
    """Return settings, or a schedule of a mapping by epoch; "auto" is the default settings if the loader `mixes`."""
    if isinstance(mix, str) and mix == "auto":
        return MultiMix() if mixes else None
    return MixSchedule.of(mix) if isinstance(mix, Mapping) else mix


def _number_of_classes(number: int | None, given: Classes | None, index: Index, label: str) -> int:
    names = index.classes
    if number is None and names is None and not index.problem.all():  # if no sample is usable, `choose_samples` says so
        why = f"label={label!r} does not use a classes.json"
        why = why if label.startswith("json:") else "no classes.json lies beside the shards"
        raise ConfigError(f"num_classes= or classes= must be given, as {why}")
    if number is not None and given is not None and names is not None and number < len(names):
        raise ConfigError(f"num_classes must be at least the number of names in classes, {len(names)}; found {number}")
    return max(len(names or ()), 1) if number is None else number
