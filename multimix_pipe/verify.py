"""Checks every sample of a set of shards by decoding it in full with the decoder that training uses."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from braceexpand import braceexpand
from numpy.typing import NDArray

from multimix_pipe.config import Backend
from multimix_pipe.errors import ShardError, redacted
from multimix_pipe.loader import Source
from multimix_pipe.loader.backend import choose_backend
from multimix_pipe.native.decode import UndecodableError, decode_indexed
from multimix_pipe.runtime.bad_samples import Unusable, read_sample
from multimix_pipe.shards.classes import Classes
from multimix_pipe.shards.cores import usable_cores
from multimix_pipe.shards.index import Index, open_index
from multimix_pipe.shards.listing import distinct_names, list_shards
from multimix_pipe.shards.packed import incomplete
from multimix_pipe.shards.progress import Progress
from multimix_pipe.shards.reader import ShardReader

Encoded = NDArray[np.uint8]
DecodeCheck = Callable[[Sequence[Encoded], Sequence[tuple[int, int]]], list[str | None]]
"""Takes encoded images and their indexed (height, width); gives the reason why each cannot be decoded, or None."""

CHUNK = 16
"""Samples per task of a thread."""


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be trained on."""

    shard: str
    """Base name, with folders before it if several shards have that name."""
    key: str
    reason: str

    @property
    def name(self) -> str:
        """`shard.tar : key`, which `open_loader(exclude=)` takes."""
        return f"{self.shard} : {self.key}"


@dataclass(frozen=True)
class BadShard:
    """A shard that is missing, damaged or cannot be indexed, or a folder that lacks shards. What is there is verified."""

    shard: str
    """Path, or the name given in `source`."""
    reason: str
    is_folder: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    backend: str
    """Backend whose decoder was used, "dali" or "torch"."""
    shards: int
    """Number of shards verified to their end."""
    samples: int
    """Number of samples verified."""
    without_image: int
    """Number of samples without an image; they are left out here and in training."""
    bad: tuple[BadSample, ...]
    bad_shards: tuple[BadShard, ...]


def verify(
    source: Source,
    *,
    label: str | None = "cls",
    classes: Classes | None = None,
    label_offset: int = 0,
    multilabel: bool = False,
    cache_dir: str | PathLike[str] | None = None,
    backend: Backend = "auto",
    workers: int | None = None,
    progress: bool = True,
    found: Callable[[BadSample | BadShard], object] = lambda bad: None,
) -> VerifyReport:
    """Read and decode every sample of `source` in `workers` threads (None: one per usable core).

    `source`, `label`, `classes`, `label_offset`, `multilabel`, `cache_dir` and `backend` are those of `open_loader`. A sample is
    bad if the index has a problem for it, if the backend's decoder cannot decode it in full on the CPU, or if its size differs
    from the indexed size. Training may succeed on a bad sample, on a GPU or if the damage lies outside the crop, but it fails on
    no other sample. `found` is called with each bad sample and shard as soon as it is found.

    A shard that cannot be indexed to its end is reported, and the other shards are verified. Raises ShardError if none of the
    shards exists, and MultiMixError if an index cannot be written.
    """
    chosen = choose_backend(backend, torch.device("cpu"))
    check = _decode_check(chosen)
    shards, bad_shards = _list_present(source, cache_dir, progress)
    indexes, damaged = _open_sound(
        shards,
        partial(
            open_index,
            label=label,
            classes=classes,
            label_offset=label_offset,
            multilabel=multilabel,
            cache_dir=cache_dir,
            progress=progress,
            workers=workers,
            keep_damaged=True,
        ),
    )
    bad_shards += damaged
    damage = [item for index in indexes for item in index.damage if item[0] in index.shards]
    found_in = {shard: 0 for shard in shards}
    for index in indexes:
        found_in.update(zip(index.shards, np.bincount(index.shard, minlength=len(index.shards)).tolist(), strict=True))
    damage += incomplete(source, shards, found_in.values())
    names = dict(zip(shards, distinct_names(shards), strict=True))
    bad_shards += [BadShard(redacted(str(path)), reason, path not in names) for path, reason in damage]
    for shard in bad_shards:
        found(shard)
    bad = []
    count = sum(map(len, indexes))
    threads = workers or usable_cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="multimix-verify")
    try:
        with warnings.catch_warnings(), Progress("verifying", total=count, unit="image", disable=not progress) as bar:
            warnings.simplefilter("ignore")  # Pillow's, of broken metadata; threads see this filter too
            for index in indexes:
                for sample_ids, reasons in _check_all(index, check, pool, 2 * threads):
                    for sample_id, reason in zip(sample_ids, reasons, strict=True):
                        if reason is not None:
                            shard_name = names[index.shards[index.shard[sample_id]]]
                            bad.append(BadSample(shard_name, index.key(sample_id), reason))
                            found(bad[-1])
                    bar.update(len(sample_ids))
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt, drop what has not started
    return VerifyReport(
        backend=chosen,
        shards=sum(len(set(index.shards) - {path for path, _ in index.damage}) for index in indexes),
        samples=count,
        without_image=sum(index.without_image for index in indexes),
        bad=tuple(bad),
        bad_shards=tuple(bad_shards),
    )


def _decode_check(backend: str) -> DecodeCheck:
    if backend == "torch":
        return _check_with_torch
    from multimix_pipe.dali.decode_check import DaliDecodeCheck

    dali = DaliDecodeCheck(CHUNK)

    def check_with_dali(images: Sequence[Encoded], sizes: Sequence[tuple[int, int]]) -> list[str | None]:
        reasons = dali(images, sizes)
        for row, reason in enumerate(reasons):
            if reason is not None:
                # DALI gives no cause; the torch decoder may give one, and it matters whether it can decode the image
                other = _torch_problem(images[row], *sizes[row])
                reasons[row] = f"{reason} ({other or 'the torch backend can'})"
        return reasons

    return check_with_dali


def _check_with_torch(images: Sequence[Encoded], sizes: Sequence[tuple[int, int]]) -> list[str | None]:
    return [_torch_problem(image, *size) for image, size in zip(images, sizes, strict=True)]


def _torch_problem(image: Encoded, height: int, width: int) -> str | None:
    try:
        decode_indexed(image, height, width)
    except UndecodableError as error:
        return str(error)
    return None


def _list_present(
    source: Source, cache_dir: str | PathLike[str] | None, progress: bool
) -> tuple[tuple[Path, ...], list[BadShard]]:
    """Return the shards that exist, and those that a pattern or a list names but that are missing."""
    list_them = partial(list_shards, cache_dir=cache_dir, progress=progress)
    try:
        return list_them(source), []
    except ShardError as error:
        first = error
    items = [source] if isinstance(source, (str, PathLike)) else source
    present: list[Path] = []
    missing: list[BadShard] = []
    for item in items:
        names = [os.fspath(item)] if os.path.exists(item) else braceexpand(os.fspath(item))
        for name in names:
            try:
                present += list_them(name)
            except ShardError as error:
                missing.append(BadShard(redacted(name), str(error)))
    if not present:
        raise first
    return list_them(present), missing  # refuses a shard that is named twice


def _open_sound(
    shards: Sequence[Path], open_them: Callable[[Sequence[Path]], Index]
) -> tuple[list[Index], list[BadShard]]:
    """Open the indexes of all shards that can be indexed, in order; a single index if all can.

    A list with a bad shard is split into halves, so that sound shards are still indexed in parallel, each only once.
    """
    try:
        return [open_them(shards)], []
    except ShardError as error:
        if len(shards) == 1:
            return [], [BadShard(str(shards[0]), str(error))]
    half = len(shards) // 2
    indexes, bad = _open_sound(shards[:half], open_them)
    more_indexes, more_bad = _open_sound(shards[half:], open_them)
    return indexes + more_indexes, bad + more_bad


def _check_all(
    index: Index, check: DecodeCheck, pool: ThreadPoolExecutor, max_ahead: int
) -> Iterator[tuple[range, list[str | None]]]:
    """Yield chunks of sample ids with their reasons, in order; threads run at most `max_ahead` chunks ahead."""
    reader = ShardReader(index)
    ahead: deque[tuple[range, Future[list[str | None]]]] = deque()
    try:
        for first in range(0, len(index), CHUNK):
            sample_ids = range(first, min(first + CHUNK, len(index)))
            ahead.append((sample_ids, pool.submit(_check_chunk, index, reader, check, sample_ids)))
            if len(ahead) > max_ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        while ahead:
            done, future = ahead.popleft()
            yield done, future.result()
    finally:
        reader.close()


def _check_chunk(index: Index, reader: ShardReader, check: DecodeCheck, sample_ids: range) -> list[str | None]:
    read = [read_sample(reader, index, sample_id, raises=False) for sample_id in sample_ids]
    reasons = [found.reason if isinstance(found, Unusable) else None for found in read]
    images = {row: found for row, found in enumerate(read) if not isinstance(found, Unusable)}
    sizes = [(int(index.height[sample_ids[row]]), int(index.width[sample_ids[row]])) for row in images]
    for row, reason in zip(images, check(list(images.values()), sizes), strict=True):
        reasons[row] = reason
    return reasons
