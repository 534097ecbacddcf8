"""Reads corrupted data in the layout of the published sets, ImageNet-C and CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from multimix_pipe.errors import ConfigError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
BATCH = 128


@dataclass(frozen=True)
class PublishedSet:
    """One corruption at one severity. Iterating yields (images (B, 3, H, W) in [0, 1], labels (B,)) of every `step`-th image."""

    corruption: str
    severity: str
    items: Sequence[Path] | np.ndarray
    """Image files, or uint8 pixels (N, H, W, 3)."""
    labels: Sequence[int] | np.ndarray

    def batches(self, size: tuple[int, int], first: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the images first, first + step, ..., resized to `size` (H, W) if they differ from it."""
        places = range(first, len(self.items), step)
        for start in range(0, len(places), BATCH):
            chosen = places[start : start + BATCH]
            images = torch.cat([_tensor(self.items[place], size) for place in chosen])
            yield images, torch.tensor([int(self.labels[place]) for place in chosen])


def published_sets(folder: Path, classes: Sequence[str] | None = None) -> list[PublishedSet]:
    """Return the sets in a folder, by corruption and severity.

    The layout is either `CORRUPTION/SEVERITY/CLASS/*.JPEG`, as in ImageNet-C, or `CORRUPTION.npy` with uint8 (5 * N, H, W, 3) and
    `labels.npy`, as in CIFAR-10-C, where severities follow each other. `classes` are the names in the order of the class ids;
    default: the class folders in alphabetical order.

    Raises:
        ConfigError: there is no such set in the folder, or it has a class that `classes` does not have.
    """
    if not folder.is_dir():
        raise ConfigError(f"the folder of corrupted images must exist; found no {str(folder)!r}")
    found = _arrays(folder) if (folder / "labels.npy").is_file() else _folders(folder, classes)
    if not found:
        raise ConfigError(
            f"{folder}: must hold CORRUPTION/SEVERITY/CLASS/*.JPEG, or CORRUPTION.npy and labels.npy; found neither"
        )
    return found


def _folders(folder: Path, classes: Sequence[str] | None) -> list[PublishedSet]:
    found = []
    for place in sorted(folder.glob("*/[1-5]")):
        if not place.is_dir():
            continue
        names = sorted(path.name for path in place.iterdir() if path.is_dir())
        known = {name: number for number, name in enumerate(names if classes is None else classes)}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"{place}: each folder must be named for a class; found {unknown[0]!r}, which is none")
        files = [
            (path, known[name])
            for name in names
            for path in sorted((place / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        found.append(
            PublishedSet(place.parent.name, place.name, *(list(column) for column in zip(*files, strict=True)))
        )
    return found


def _arrays(folder: Path) -> list[PublishedSet]:
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    found = []
    for path in sorted(folder.glob("*.npy")):
        if path.stem == "labels":
            continue
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != len(labels):
            raise ConfigError(
                f"{path}: must hold uint8 (N, H, W, 3) with N = {len(labels)} as in labels.npy; "
                f"found {pixels.dtype} {pixels.shape}"
            )
        each = len(labels) // 5
        for number in range(5):
            rows = slice(number * each, (number + 1) * each)
            found.append(PublishedSet(path.stem, str(number + 1), pixels[rows], labels[rows]))
    return found


def _tensor(item: Path | np.ndarray, size: tuple[int, int]) -> Tensor:
    if isinstance(item, Path):
        with Image.open(item) as opened:
            item = np.asarray(opened.convert("RGB"))
    image = torch.from_numpy(np.array(item)).permute(2, 0, 1)[None].float() / 255
    return image if image.shape[2:] == size else F.interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)
