"""The generated samples that most tests read, and their shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from helpers.images import KINDS, encoded, picture
from helpers.tars import write_tar
from multimix_pipe import TrainTransform

Sample = tuple[str, str, bytes]
"""Key, extension, and the bytes of an image."""
CLASSES = 7
SIZE = 24
TRANSFORM = TrainTransform(size=SIZE)
TINY = TrainTransform(size=8)
"""For tests that check plans, not pixels."""
N = 100
"""Number of generated samples."""
WHOLE = TrainTransform(size=8, scale=(1.0, 1.0), ratio=(0.1, 10.0))
"""Windows reach the last row of the image, so that no backend can decode a truncated one."""
BAD = {"420-000", "444-010", "gray-030", "png-050"}
"""Keys of the samples that are damaged in the fixture `bad_shards`."""
ODD_SIZES = [(1, 1), (2, 3), (1, 64), (97, 2)]


@cache
def sample_set(scale: int = 1) -> tuple[Sample, ...]:
    """Return 100 samples: all KINDS in different sizes, two CMYK images, and tiny ones.

    Sides are 36 to 130 pixels, divided by `scale`.
    """
    samples = []
    for number in range(94):
        kind = list(KINDS)[number % len(KINDS)]
        image = picture(number, (40 + 13 * number % 90) // scale, (36 + 29 * number % 80) // scale)
        samples.append((f"{kind}-{number:03d}", *KINDS[kind](image)))
    for number, (width, height) in enumerate(ODD_SIZES, 94):
        samples.append((f"tiny-{number:03d}", *KINDS["444"](picture(number, width, height))))
    for number in (98, 99):
        cmyk = encoded(picture(number, 64, 48).convert("CMYK"), "JPEG", quality=95)
        samples.append((f"cmyk-{number:03d}", "jpg", cmyk))
    return tuple(samples)


def write_shards(folder: Path, samples: Sequence[Sample], shards: int = 4) -> Path:
    """Write `samples` to WebDataset shards in turn; sample i has the class i % CLASSES. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = []
        for number in range(shard, len(samples), shards):
            key, extension, data = samples[number]
            members += [(f"{key}.{extension}", data), (f"{key}.cls", str(number % CLASSES).encode())]
        write_tar(folder / f"set-{shard:03d}.tar", members)
    return folder


def folder_from_environment(name: str, what: str) -> Path:
    """Return the folder that an environment variable names. Skips the test if it is unset."""
    if name not in os.environ:
        pytest.skip(f"{name} is not set; it names {what}")
    return Path(os.environ[name])
