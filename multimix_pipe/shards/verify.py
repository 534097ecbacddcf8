"""Reading every sample of a set of shards once, and decoding it fully."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

import numpy as np
from PIL import Image
from tqdm import tqdm

from multimix_pipe.cores import usable_cores
from multimix_pipe.shards.header import FORMATS
from multimix_pipe.shards.index import PROBLEMS, Index, open_index


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be trained on."""

    name: str
    """`shard.tar : key`."""
    key: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    samples: int
    bad: tuple[BadSample, ...]


def verify(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    label: str = "cls",
    cache_dir: str | PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> VerifyReport:
    """Read and decode all samples of `source` in `workers` threads (None: one a usable core); see `open_index`.

    Bad are those with a code in `Index.problem`, and those that Pillow cannot decode to the end or whose size is not
    what their header says. A decoder that is more lenient may still take some of them.
    """
    index = open_index(source, label=label, cache_dir=cache_dir, progress=progress, workers=workers)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(workers or usable_cores()) as pool,
        tqdm(total=len(index), desc="verifying", unit="image", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of broken metadata; threads see this filter too
        bad = []
        for i, reason in _reasons(index, pool):
            if reason is not None:
                bad.append(BadSample(index.name(i), index.key(i), reason))
            bar.update()
    return VerifyReport(len(index), tuple(bad))


def _reasons(index: Index, pool: ThreadPoolExecutor) -> Iterator[tuple[int, str | None]]:
    """(id, reason or None) of each sample in order; threads work a bounded way ahead."""
    for number, shard in enumerate(index.shards):
        with open(shard, "rb") as file:
            ahead: deque[tuple[int, Future[str | None]]] = deque()
            for i in np.flatnonzero(index.shard == number).tolist():
                ahead.append((i, pool.submit(_check, index, i, file.fileno())))
                if len(ahead) >= 64:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()


def _check(index: Index, i: int, descriptor: int) -> str | None:
    if index.problem[i]:
        return PROBLEMS[int(index.problem[i])]
    size = int(index.size[i])
    try:
        data = os.pread(descriptor, size, int(index.offset[i]))
        if len(data) < size:
            return f"only {len(data):,} of {size:,} bytes can be read"
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            found, expected = image.size, (int(index.width[i]), int(index.height[i]))
            image.load()
    except Exception as error:  # of corrupt data Pillow raises nearly anything; each is an answer here
        return f"{type(error).__name__}: {error}"
    return None if found == expected else f"it is {found[0]}x{found[1]}, its header says {expected[0]}x{expected[1]}"
