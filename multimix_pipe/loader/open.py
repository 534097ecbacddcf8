"""`open_loader`: the arguments, checked and resolved, and everything that a loader is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from multimix_pipe.config import (
    Backend,
    DType,
    Keys,
    LastBatch,
    OnBadSample,
    Shuffle,
    Targets,
    TrainTransform,
    Transform,
)
from multimix_pipe.loader.backend import choose_backend
from multimix_pipe.loader.loader import Loader
from multimix_pipe.loader.memory import check_batch_fits
from multimix_pipe.loader.rank import choose_device, default_threads, rank_and_world
from multimix_pipe.loader.samples import choose_samples
from multimix_pipe.mixing import MultiMix
from multimix_pipe.plan import Plan
from multimix_pipe.runtime.bad_samples import BadSamples
from multimix_pipe.runtime.context import LoaderConfig, LoaderContext
from multimix_pipe.shards.index import open_index
from multimix_pipe.shards.reader import ShardReader

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def open_loader(
    shards: Source,
    *,
    batch_size: int,
    num_classes: int,
    mix: MultiMix | Literal["auto"] | None = "auto",
    transform: Transform = TrainTransform(),
    backend: Backend = "auto",
    device: str | torch.device = "auto",
    dtype: DType = "float32",
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
    targets: Targets = "rows",
    label: str = "cls",
    exif: bool = False,
    expand: bool = True,
    exclude: Keys | None = None,
    samples: Keys | None = None,
    weights: Sequence[float] | NDArray[np.floating] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Loader:
    """Open WebDataset shards as an iterable of `Batch`es, in place of a torch DataLoader.

    The index of the shards is built at the first opening and kept beside them.

    Args:
        shards: path, glob, brace pattern, folder, http(s) URL (with `cache_dir`), or a list of those.
        batch_size: B, samples decoded per process and step. Each is mixed with one partner: the model sees B*K rows.
        num_classes: labels must lie in [0, num_classes).
        mix: the mixing; None for none. Default: `MultiMix()` with a TrainTransform, None with an EvalTransform.
        transform: `TrainTransform` (random crop and flip) or `EvalTransform` (resize and centre crop).
        backend: "dali", "torch", or "auto": DALI where it imports, which one log line says.
        device: where the batches are to be: "cpu", "cuda", "cuda:1", "mps", or "auto". "cuda" means cuda:LOCAL_RANK.
        dtype: of the images; they are mixed in float32 and rounded once. Targets are always float32.
        channels_last: give the images that memory format.
        shuffle: "global", "window" (sequential reads, a few shards at a time, which must have been shuffled when written) or
            "none". Default: "global" with a TrainTransform, "none" with an EvalTransform.
        last_batch: "wrap" (equal steps in every process, the epoch's first samples are repeated), "drop" or "partial" (every
            sample exactly once; processes may differ by one step). Default: "wrap" to train, "partial" to evaluate.
        seed: of every draw; 0 .. 2**64-1. The same seed gives the same epochs on any machine, backend and number of processes.
        rank, world_size: of this process; None: torch.distributed, else torchrun's environment, else 0 of 1.
        on_bad_sample: "raise", or "replace" by a deterministic other sample; `Loader.bad_samples` names them. A damaged shard is
            an error, or costs its samples from the damage on; so does one that is cut or gone while the loader runs.
        max_bad: under "replace", how many different bad samples there may be: a number, or as a float a share of the samples
            used. One more ends the run with an error: at opening, where indexing finds them, else at its step.
        num_threads: decoding threads; None: usable cores / LOCAL_WORLD_SIZE.
        prefetch: batches prepared ahead.
        targets: "rows", dense (B*K, num_classes); or "pairs", (labels, partners' labels, lam).
        label: "cls", or "json:KEY" for an integer field of the samples' json.
        exif: rotate images as their EXIF orientation says. Off, as in the usual ImageNet training.
        expand: False gives plain (B, C, H, W) images, int64 labels and the mixing as `batch.plan` alone.
        exclude, samples: keys to leave out, keys to keep: a list, or a text file with one a line.
        weights: a number >= 0 for each sample used, in stored order: samples are drawn with replacement by weight.
        cache_dir: folder for downloaded shards, and for indices of shards whose folder cannot be written.

    Raises:
        ConfigError: an argument, or a combination, that cannot work.
        ShardError: shards that are missing or damaged.
        MultiMixError: their index cannot be written.
        MissingBackendError: backend="dali" where DALI does not import.

    Iterating raises BadSampleError at the step of a bad sample, after the batches before it.
    """
    settings = dict(locals())
    return Loader(open_context(settings.pop("shards"), **settings))


def open_context(
    shards: Source,
    *,
    transform: Transform = TrainTransform(),
    mix: MultiMix | Literal["auto"] | None = "auto",
    shuffle: Shuffle | Literal["auto"] = "auto",
    last_batch: LastBatch | Literal["auto"] = "auto",
    device: str | torch.device = "auto",
    rank: int | None = None,
    world_size: int | None = None,
    num_threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> LoaderContext:
    """What a loader and its executor are made of; the arguments are those of `open_loader`, named here where None or "auto"
    is resolved. Benchmarks and tests give it to an executor without a loader, or to a `Loader` with an executor of their own.
    """
    trains = getattr(transform, "random", True)
    rank, world_size = rank_and_world(rank, world_size)
    config = LoaderConfig(
        transform=transform,
        mix=(MultiMix() if trains else None) if isinstance(mix, str) and mix == "auto" else mix,
        shuffle=("global" if trains else "none") if shuffle == "auto" else shuffle,
        last_batch=("wrap" if trains else "partial") if last_batch == "auto" else last_batch,
        device=str(device),
        rank=rank,
        world_size=world_size,
        num_threads=default_threads() if num_threads is None else num_threads,
        **settings,
    )
    index = open_index(
        shards,
        label=config.label,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        keep_damaged=config.on_bad_sample == "replace",
    )
    chosen = choose_device(config.device)
    backend = choose_backend(config.backend, chosen)
    check_batch_fits(config, chosen)
    samples = choose_samples(index, config)
    return LoaderContext(
        index=index,
        plan=Plan(samples, config.transform, config.mix, config.shuffle, config.seed, config.batch_size),
        reader=ShardReader(index),
        bad_samples=BadSamples(index, samples.number, config.on_bad_sample, config.max_bad),
        config=config,
        backend=backend,
        device=chosen,
    )
