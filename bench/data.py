"""Shards to measure on: the user's own, or generated ones with images of typical ImageNet size."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multimix_pipe import Loader, MultiMix, open_loader
from multimix_pipe.shards.index import open_index
from multimix_pipe.shards.pack import pack

SIDE, PADDED_BYTES, NUMBER_AT = 224, 110_000, 6
"""Of a `padded_jpeg`: pixels a side, bytes, and the place of the byte that tells it from others."""


def scratch_folder() -> Path:
    """Make a temporary folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="multimix_bench_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def kept_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """Return a temporary folder that later runs reuse; `fill` writes its contents if it does not exist yet."""
    folder = Path(tempfile.gettempdir()) / f"multimix_bench_{name}"
    if not folder.exists():
        partial = Path(tempfile.mkdtemp(prefix="multimix_bench_"))
        fill(partial)
        partial.rename(folder)
    return folder


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar of (name, content) pairs and return its path."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def generated_shards(count: int = 256) -> Path:
    """Return a reusable folder of four shards with `count` JPEGs of 500x375 and 375x500 pixels, quality 90, about 110 KB each.

    Their spectrum falls off with frequency as that of photographs does, so that decoding costs about the same.
    """

    def fill(folder: Path) -> None:
        for number in range(count):
            place = folder / "images" / f"class{number % 8}" / f"{number:05}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            size = (375, 500) if number % 2 else (500, 375)
            Image.fromarray(_photo_like(np.random.default_rng(number), *size)).save(place, quality=90)
        pack(folder / "images", folder / "shards", samples_per_shard=-(-count // 4), progress=False)

    return kept_folder(str(count), fill) / "shards"


def padded_jpeg(number: int) -> bytes:
    """A flat JPEG image of SIDE x SIDE pixels, filled up with comments to the size of a photo: PADDED_BYTES.

    Byte NUMBER_AT is `number`, 0..255, and so is the image's red.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number, 80, 120)).save(buffer, "JPEG", quality=90)
    flat = buffer.getvalue()
    scan = flat.index(b"\xff\xda")
    missing = PADDED_BYTES - len(flat) - len(_comment(bytes(1))) - 2 * len(_comment(b""))
    padding = _comment(bytes(missing // 2)) + _comment(bytes(missing - missing // 2))
    return flat[:2] + _comment(bytes([number])) + flat[2:scan] + padding + flat[scan:]


def _comment(content: bytes) -> bytes:
    return b"\xff\xfe" + (len(content) + 2).to_bytes(2, "big") + content


def write_shards(folder: Path, images: Sequence[bytes], samples: int, shards: int, classes: int = 1000) -> None:
    """Write `shards` shards with `samples` samples altogether, which cycle through `images` and `classes` class ids."""
    for shard in range(shards):
        members = []
        for number in range(shard * samples // shards, (shard + 1) * samples // shards):
            label, image = b"%d" % (number % classes), images[number % len(images)]
            members += [(f"{number:07}.cls", label), (f"{number:07}.jpg", image)]
        write_tar(folder / f"train-{shard:06}.tar", members)


def padded_shards(samples: int, shards: int) -> Path:
    """Return a kept folder of padded JPEGs: as many bytes to read as photos have, and next to nothing to decode."""
    images = [padded_jpeg(number) for number in range(256)]
    return kept_folder(f"padded_{samples}_{shards}", lambda folder: write_shards(folder, images, samples, shards))


def chosen_shards(folder: Path | None) -> tuple[Path, int]:
    """Return the folder of shards to measure on (generated if `folder` is None) and its number of classes, at least 1,000."""
    folder = folder or generated_shards()
    return folder, max(1000, len(json.loads((folder / "classes.json").read_text())))


def repeated(folder: Path, times: int) -> list[str]:
    """Return `times` copies of each shard of `folder`, as links with distinct names in a temporary folder."""
    links = scratch_folder()
    for turn in range(times):
        for shard in sorted(folder.glob("*.tar")):
            (links / f"{turn}-{shard.name}").symlink_to(shard.resolve())
    return [str(path) for path in sorted(links.glob("*.tar"))]


def an_epoch(folder: Path, images: int) -> dict[str, Any]:
    """Return arguments of `open_loader` for an epoch of exactly `images` images.

    The shards of `folder` are repeated if they hold fewer; if they hold more, the first ones are used.
    """
    times = -(-images // len(open_index(folder, progress=False)))
    shards = repeated(folder, times)
    index = open_index(shards, progress=False)
    return {"shards": shards, "samples": [index.full_key(number) for number in range(images)]}


def open_backend(backend: str, *, k: int | None = 5, **options: Any) -> Loader:
    """Call `open_loader` with the defaults of most benchmarks: CPU, 64 images per step, K rows per pair (None: no mixing)."""
    mix = None if k is None else MultiMix(k=k)
    defaults: dict[str, Any] = {"batch_size": 64, "num_classes": 1000, "device": "cpu", "mix": mix}
    return open_loader(backend=backend, **defaults | options)  # type: ignore[arg-type]


def _photo_like(noise: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    falloff = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.1
    white = noise.standard_normal((4, height, width))
    gray, *colour = np.fft.irfft2(falloff * np.fft.rfft2(white), (height, width))
    image = np.stack([gray + 0.3 * channel for channel in colour], axis=2)
    pixels: NDArray[np.uint8] = np.clip(128 + 55 * image / image.std(), 0, 255).astype(np.uint8)
    return pixels
