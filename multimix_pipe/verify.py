"""PendingReads every sample of a set of shards once, and decoding it fully by what training decodes it with."""

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

from multimix_pipe.config import Backend, usable_cores
from multimix_pipe.errors import ShardError
from multimix_pipe.loader import Source
from multimix_pipe.loader.backend import choose_backend
from multimix_pipe.native.decode import UndecodableError, decode_indexed
from multimix_pipe.shards.index import Index, open_index
from multimix_pipe.shards.listing import list_shards
from multimix_pipe.shards.progress import Progress
from multimix_pipe.shards.reader import ShardReader

Encoded = NDArray[np.uint8]
Judge = Callable[[Sequence[Encoded], Sequence[tuple[int, int]]], list[str | None]]
"""Encoded images and their indexed (height, width) -> why each cannot be decoded, None where it can."""

CHUNK = 16
"""Samples that a thread takes at a time."""


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be trained on."""

    shard: str
    """Base name."""
    key: str
    reason: str

    @property
    def name(self) -> str:
        """`shard.tar : key`, which `open_loader(exclude=)` takes."""
        return f"{self.shard} : {self.key}"


@dataclass(frozen=True)
class BadShard:
    """A shard that is missing or cannot be indexed, or is damaged: of it only the samples before the damage are verified."""

    shard: str
    """Its path, as far as it is known."""
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    backend: str
    """ "dali" or "torch": whose decoder judged."""
    shards: int
    """Those verified to their end."""
    samples: int
    """Those verified."""
    without_image: int
    """Samples of these shards that are left out, here and in training, because they have no image."""
    bad: tuple[BadSample, ...]
    bad_shards: tuple[BadShard, ...]


def verify(
    source: Source,
    *,
    label: str = "cls",
    cache_dir: str | PathLike[str] | None = None,
    backend: Backend = "auto",
    workers: int | None = None,
    progress: bool = True,
    found: Callable[[BadSample | BadShard], object] = lambda bad: None,
) -> VerifyReport:
    """Read and decode all samples of `source` in `workers` threads (None: one a usable core); see `open_index`.

    Bad are those with a code in `Index.problem`, those that the decoder of `backend` (as `open_loader` takes it) cannot decode in
    full on the CPU, and those whose size is not what their index says. Training may succeed where the bad part lies outside a
    window, or on a GPU; it does not fail on any other. `found` is called with whatever is bad, as soon as it is known.

    A shard that cannot be indexed, or not to its end, is reported, and the others are verified. Raises ShardError where
    `source` names no shard that is there, MultiMixError where an index cannot be written.
    """
    chosen = choose_backend(backend, torch.device("cpu"))
    judge = _judge(chosen)
    shards, bad_shards = _list_present(source, cache_dir, progress)
    indexes, damaged = _open_sound(
        shards,
        partial(open_index, label=label, cache_dir=cache_dir, progress=progress, workers=workers, keep_damaged=True),
    )
    bad_shards += damaged
    bad_shards += [BadShard(str(shard), reason) for index in indexes for shard, reason in index.damage]
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
                for samples, reasons in _judged(index, judge, pool, 2 * threads):
                    for i, reason in zip(samples, reasons, strict=True):
                        if reason is not None:
                            bad.append(BadSample(index.shards[index.shard[i]].name, index.key(i), reason))
                            found(bad[-1])
                    bar.update(len(samples))
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt nobody wants what has not been begun
    return VerifyReport(
        backend=chosen,
        shards=sum(len(index.shards) - len(index.damage) for index in indexes),
        samples=count,
        without_image=sum(index.without_image for index in indexes),
        bad=tuple(bad),
        bad_shards=tuple(bad_shards),
    )


def _judge(backend: str) -> Judge:
    if backend == "torch":
        return _judge_by_torch
    from multimix_pipe.dali.decode_check import DaliDecodeCheck

    dali = DaliDecodeCheck(CHUNK)

    def judge(images: Sequence[Encoded], sizes: Sequence[tuple[int, int]]) -> list[str | None]:
        reasons = dali(images, sizes)
        for row, reason in enumerate(reasons):
            if reason is not None:
                # DALI does not say why; the other decoder may, and whether it can do it is worth knowing
                other = _torch_problem(images[row], *sizes[row])
                reasons[row] = f"{reason} ({other or 'the torch backend can'})"
        return reasons

    return judge


def _judge_by_torch(images: Sequence[Encoded], sizes: Sequence[tuple[int, int]]) -> list[str | None]:
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
    """The shards that `list_shards` finds, and what it does not find of a pattern or a list."""
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
                missing.append(BadShard(name, str(error)))
    if not present:
        raise first
    return list_them(present), missing  # once more: a shard must not be named twice


def _open_sound(
    shards: Sequence[Path], open_them: Callable[[Sequence[Path]], Index]
) -> tuple[list[Index], list[BadShard]]:
    """Indexes of all shards that can be indexed, in order; one index where all can.

    Halves of a set with a bad shard are tried in turn: sound shards are still indexed in parallel, and each only once.
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


def _judged(
    index: Index, judge: Judge, pool: ThreadPoolExecutor, most_ahead: int
) -> Iterator[tuple[range, list[str | None]]]:
    """Samples and their reasons, in order; threads work at most so many chunks ahead."""
    reader = ShardReader(index)
    ahead: deque[tuple[range, Future[list[str | None]]]] = deque()
    try:
        for first in range(0, len(index), CHUNK):
            samples = range(first, min(first + CHUNK, len(index)))
            ahead.append((samples, pool.submit(_check, index, reader, judge, samples)))
            if len(ahead) > most_ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        while ahead:
            done, future = ahead.popleft()
            yield done, future.result()
    finally:
        reader.close()


def _check(index: Index, reader: ShardReader, judge: Judge, samples: range) -> list[str | None]:
    read = [reader.read_usable(i, raises=False) for i in samples]
    reasons = [found if isinstance(found, str) else None for found in read]
    images = {row: found for row, found in enumerate(read) if not isinstance(found, str)}
    sizes = [(int(index.height[samples[row]]), int(index.width[samples[row]])) for row in images]
    for row, reason in zip(images, judge(list(images.values()), sizes), strict=True):
        reasons[row] = reason
    return reasons
