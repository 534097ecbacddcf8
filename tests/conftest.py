"""Data and backends that several test files share: one generated set of shards a session."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from shard_files import write_tar

from multimix_pipe import Batch, Loader, TrainTransform, open_loader
from multimix_pipe.loader.backend import dali_import_error
from multimix_pipe.shards.pack import pack

CLASSES = 7
SIZE = 24
TRANSFORM = TrainTransform(size=SIZE)
TINY = TrainTransform(size=8)
"""For tests that look at decisions, not at pixels."""
N = 100
"""Samples of the generated set."""
BACKENDS = ("torch", "dali")

Open = Callable[..., Loader]

Pixels = NDArray[np.uint8]


def dali_missing() -> str | None:
    """Why DALI cannot be used here, None where it can."""
    error = dali_import_error()
    return None if error is None else f"DALI does not import: {error}"


needs_dali = pytest.mark.skipif(dali_missing() is not None, reason=str(dali_missing()))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; DALI only where it imports."""
    if request.param == "dali" and (reason := dali_missing()):
        pytest.skip(reason)
    return str(request.param)


def picture(number: int, width: int, height: int) -> Image.Image:
    """A smooth random image: decoders and resamplers differ least where neighbours are alike, as in photos."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of `image` in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    """A JPEG whose EXIF asks for `orientation`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, subsampling=0, exif=exif)


KINDS: dict[str, Callable[[Image.Image], tuple[str, bytes]]] = {
    "420": lambda image: ("jpg", encoded(image, "JPEG", quality=90, subsampling=2)),
    "444": lambda image: ("jpg", encoded(image, "JPEG", quality=95, subsampling=0)),
    "progressive": lambda image: ("jpeg", encoded(image, "JPEG", quality=90, progressive=True)),
    "gray": lambda image: ("jpg", encoded(image.convert("L"), "JPEG", quality=90)),
    "rotated": lambda image: ("jpg", with_orientation(image, 6)),
    "png": lambda image: ("png", encoded(image, "PNG")),
    "alpha": lambda image: ("png", encoded(image.convert("RGBA"), "PNG")),
    "palette": lambda image: ("png", encoded(image.quantize(64), "PNG")),
    "webp": lambda image: ("webp", encoded(image, "WEBP", lossless=True)),
}
ODD_SIZES = [(1, 1), (2, 3), (1, 64), (97, 2)]


def sample_set() -> list[tuple[str, str, bytes]]:
    """(key, extension, bytes) of 100 samples: all KINDS in sizes that differ, two CMYK, and tiny ones."""
    samples = []
    for number in range(94):
        kind = list(KINDS)[number % len(KINDS)]
        image = picture(number, 40 + 13 * number % 90, 36 + 29 * number % 80)
        samples.append((f"{kind}-{number:03d}", *KINDS[kind](image)))
    for number, (width, height) in enumerate(ODD_SIZES, 94):
        samples.append((f"tiny-{number:03d}", *KINDS["444"](picture(number, width, height))))
    for number in (98, 99):
        cmyk = encoded(picture(number, 64, 48).convert("CMYK"), "JPEG", quality=95)
        samples.append((f"cmyk-{number:03d}", "jpg", cmyk))
    return samples


def write_shards(folder: Path, samples: list[tuple[str, str, bytes]], shards: int = 4) -> Path:
    """Deal `samples` to tars of webdataset's layout; sample i has the class i % CLASSES."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = []
        for number in range(shard, len(samples), shards):
            key, extension, data = samples[number]
            members += [(f"{key}.{extension}", data), (f"{key}.cls", str(number % CLASSES).encode())]
        write_tar(folder / f"set-{shard:03d}.tar", members)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four tars, 100 samples of mixed formats and sizes, 7 classes. Do not write to it: use `own_shards`."""
    return write_shards(tmp_path_factory.mktemp("shards"), sample_set())


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of `shards` to damage."""
    return Path(shutil.copytree(shards, tmp_path / "own", ignore=shutil.ignore_patterns("*.index")))


BAD = {"420-000", "444-010", "gray-030", "png-050"}
WHOLE = TrainTransform(size=8, scale=(1.0, 1.0), ratio=(0.1, 10.0))
"""Windows that reach to the last line of an image, so that a cut one cannot be decoded by any backend."""


@pytest.fixture
def bad_shards(tmp_path: Path) -> Path:
    """As `shards`, with the images of BAD cut behind their headers."""
    samples = [
        (key, extension, data[: len(data) * 7 // 10] if key in BAD else data) for key, extension, data in sample_set()
    ]
    return write_shards(tmp_path / "bad", samples)


@pytest.fixture
def opened(shards: Path) -> Iterator[Callable[..., Loader]]:
    """`open_loader` with small settings over `shards`; what it opened is closed after the test."""
    loaders: list[Loader] = []

    def make(source: Path = shards, **options: object) -> Loader:
        settings: dict[str, object] = {"batch_size": 8, "num_classes": CLASSES, "transform": TRANSFORM, "device": "cpu"}
        settings |= {"num_threads": 2, "rank": 0, "world_size": 1} | options
        loader = open_loader(source, **settings)  # type: ignore[arg-type]
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


def folder_from_environment(name: str, what: str) -> Path:
    """The folder that an environment variable names; skips the test where it is unset."""
    if name not in os.environ:
        pytest.skip(f"{name} is not set; it names {what}")
    return Path(os.environ[name])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of real photos, packed from the folder of class/name.jpg in MULTIMIX_PHOTOS."""
    source = folder_from_environment("MULTIMIX_PHOTOS", "a folder of photos as class/name.jpg")
    out = tmp_path_factory.mktemp("photos")
    pack(source, out)
    return out


def same_batch(a: Batch, b: Batch) -> bool:
    """Whether two batches are equal to the bit: samples, decisions, images, targets."""
    plans = (a.plan.epoch, a.plan.start) == (b.plan.epoch, b.plan.start)
    plans &= all(np.array_equal(getattr(a.plan, name), getattr(b.plan, name)) for name in PLAN_COLUMNS)
    tensors = a.images.equal(b.images) and a.labels.equal(b.labels)
    own, other = (x if isinstance(x, tuple) else (x,) for x in (a.targets, b.targets))
    return plans and tensors and all(map(partial(type(own[0]).equal), own, other)) and a.keys == b.keys


def fingerprint(batch: Batch) -> list[Any]:
    """What `same_batch` compares, as a short JSON value: epoch, first position, keys, and a digest of all numbers."""
    targets = batch.targets if isinstance(batch.targets, tuple) else (batch.targets,)
    arrays = [getattr(batch.plan, name) for name in PLAN_COLUMNS]
    arrays += [tensor.numpy() for tensor in (batch.images, batch.labels, *targets)]
    digest = hashlib.sha256(b"".join(map(np.ndarray.tobytes, arrays))).hexdigest()[:16]
    return [batch.plan.epoch, batch.plan.start, batch.keys, digest]


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    """Whether two runs of batches are equal to the bit."""
    return len(first) == len(second) and all(map(same_batch, first, second))


def keys(loader: Loader) -> list[str]:
    """All keys of one epoch."""
    return [key for batch in loader for key in batch.keys]


def until_epoch(loader: Loader, epoch: int) -> list[Batch]:
    """What is left of the epochs before `epoch`; a loader at the very end of one has nothing left of that."""
    batches: list[Batch] = []
    while loader.state_dict()["epoch"] < epoch:
        batches += loader
    return batches


def resumed(opened: Open, state: dict[str, Any], **options: object) -> Loader:
    """A loader that continues from a state, which is written and read as JSON on the way."""
    loader = opened(**options)
    loader.load_state_dict(json.loads(json.dumps(state)))
    return loader


PLAN_COLUMNS = ("sample", "window", "flip", "partner", "lam")
