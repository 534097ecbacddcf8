"""Shards to measure on: a user's own, or generated ones of ImageNet's usual size."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multimix_pipe.shards.index import open_index
from multimix_pipe.shards.pack import pack


def generated_shards(count: int = 256) -> Path:
    """`count` JPEG images of 500x375 and 375x500 pixels, quality 90, about 110 KB each, in four shards of a temporary folder.

    Their spectrum falls with frequency as that of photographs does, so that decoding costs about the same.
    """
    folder = Path(tempfile.gettempdir()) / f"multimix_bench_{count}"
    if not (folder / "shards" / "classes.json").exists():
        for number in range(count):
            place = folder / "images" / f"class{number % 8}" / f"{number:05}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            size = (375, 500) if number % 2 else (500, 375)
            Image.fromarray(_photo_like(np.random.default_rng(number), *size)).save(place, quality=90)
        pack(folder / "images", folder / "shards", samples_per_shard=-(-count // 4), progress=False)
    return folder / "shards"


def add_shards(parser: argparse.ArgumentParser) -> None:
    """The argument --shards."""
    parser.add_argument("--shards", type=Path, help="a folder of shards with classes.json; default: generated photos")


def chosen_shards(folder: Path | None) -> tuple[Path, int]:
    """The folder of shards to measure on, and its number of classes."""
    folder = folder or generated_shards()
    return folder, len(json.loads((folder / "classes.json").read_text()))


def repeated(folder: Path, times: int) -> list[str]:
    """The shards of `folder` so many times over, as links with names of their own in a temporary folder."""
    links = Path(tempfile.mkdtemp(prefix="multimix_bench_"))
    for turn in range(times):
        for shard in sorted(folder.glob("*.tar")):
            (links / f"{turn}-{shard.name}").symlink_to(shard.resolve())
    return [str(path) for path in sorted(links.glob("*.tar"))]


def an_epoch(folder: Path, images: int) -> dict[str, Any]:
    """Arguments of `open_loader` for an epoch of so many images, whatever the shards of `folder` hold.

    Those that hold fewer are there several times over; of more the first are taken.
    """
    times = -(-images // len(open_index(folder, progress=False)))
    shards = repeated(folder, times)
    index = open_index(shards, progress=False)
    return {"shards": shards, "samples": [index.full_key(number) for number in range(images)]}


def _photo_like(noise: np.random.Generator, height: int, width: int) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    falloff = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.1
    white = noise.standard_normal((4, height, width))
    gray, *colour = np.fft.irfft2(falloff * np.fft.rfft2(white), (height, width))
    image = np.stack([gray + 0.3 * channel for channel in colour], axis=2)
    return np.clip(128 + 55 * image / image.std(), 0, 255).astype(np.uint8)
