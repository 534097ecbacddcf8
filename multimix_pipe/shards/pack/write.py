"""Packs an image folder or zip into WebDataset shards. The same input and seed give the same bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multimix_pipe.config import check_int, check_number
from multimix_pipe.errors import ConfigError, counted
from multimix_pipe.shards.classes import CLASSES, write_classes
from multimix_pipe.shards.cores import usable_cores
from multimix_pipe.shards.pack.encode import encode_images
from multimix_pipe.shards.pack.imagefolder import Image, ImageFolder, Skipped, open_image_folder
from multimix_pipe.shards.pack.layout import TRAIN
from multimix_pipe.shards.pack.shard_writer import PARTIAL, ShardWriter, write_atomically
from multimix_pipe.shards.packed import RUN
from multimix_pipe.shards.progress import Progress

logger = logging.getLogger("multimix_pipe")

IMAGES_DIGEST = "sha256_of_classes_names_and_sizes"


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote."""

    shards: tuple[Path, ...]
    classes: tuple[str, ...]
    """Class names, by class id."""
    samples: int
    bytes: int
    """Size of all shards."""
    skipped: tuple[Skipped, ...]
    """Files of the source that were not packed, most frequent kind first."""
    kept: tuple[str, ...]
    """Paths of images that could not be re-encoded and were packed unchanged; `verify` reports their problems."""


@dataclass(frozen=True)
class _Settings:
    samples_per_shard: int
    bytes_per_shard: int
    shuffle_seed: int | None
    max_side: int | None
    quality: int | None
    val: float | None

    def __post_init__(self) -> None:
        check_int("samples_per_shard", self.samples_per_shard, 1)
        check_int("bytes_per_shard", self.bytes_per_shard, 1)
        if self.shuffle_seed is not None:
            check_int("shuffle_seed", self.shuffle_seed, 0, 2**64 - 1)
        if self.max_side is not None:
            check_int("max_side", self.max_side, 1, 65500)
        if self.quality is not None:
            check_int("quality", self.quality, 1, 100)
        if self.val is not None:
            check_number("val", self.val, 0.0, 0.5, open_low=True)


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    multilabel: bool = False,
    val: float | None = None,
    samples_per_shard: int = 10_000,
    bytes_per_shard: int = 2**30,
    shuffle_seed: int | None = 0,
    max_side: int | None = None,
    quality: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Pack an image folder, or a zip or tar of one, into shards `OUT/shard-000000.tar`, ... and `OUT/classes.json` (id: name).

    `open_image_folder` describes the layout of the source. Splits (`train/class/name.jpg`) give one set of shards each,
    `OUT/train/train-000000.tar`, ..., with the same class ids; `split` packs only one of them. A shard ends at
    `samples_per_shard` or `bytes_per_shard`, whichever comes first.

    `classes` names the classes in the order of their ids, as a sequence or a file (one per line, or the classes.json of
    another set), by default their names in sorted order. `labels` is a file with the classes of images that lie in no class
    folder. With `multilabel` it has any number of classes for each image, see `read_several`; the `cls` members then hold ids
    with spaces between them, for `open_loader(multilabel=True)`.

    `val` in (0, 0.5] holds that fraction of each class out, as the split `val` beside `train`, if the source has no such split:
    at least one image of each class that has two. With `multilabel` it is a fraction of all images.

    `shuffle_seed` shuffles the images before writing, and chooses those of `val`; None keeps them sorted by path. Files are
    copied unchanged unless they are re-encoded as JPEG: with `max_side`, images with a longer side (in pixels) are shrunk to
    it; with `quality` (1..100), all images are re-encoded. `workers` threads read and encode (None: one per usable core).

    Shards appear under their names only when complete, and `classes.json` after them; after an interruption, the same call
    starts over. Raises ConfigError for invalid arguments, a source without images or whose layout is not clear, an OUT with
    shards of another run, and an OUT in the source.
    """
    settings = _Settings(samples_per_shard, bytes_per_shard, shuffle_seed, max_side, quality, val)
    if workers is not None:
        check_int("workers", workers, 1)
    _check_apart(Path(source), Path(out))
    folder = open_image_folder(source, classes=classes, labels=labels, split=split, multilabel=multilabel)
    with folder.files, ThreadPoolExecutor(workers or usable_cores()) as pool:
        if val is not None:
            folder = _hold_out(folder, val, shuffle_seed or 0)
        if split is not None and split not in folder.splits:
            have = ", ".join(map(repr, folder.splits)) if folder.splits != ("",) else "no splits"
            raise ConfigError(f"split must be one of the source's splits; found {split!r}, {source} has {have}")
        if len(folder.classes) == 1 and not multilabel:
            logger.warning("all images are of one class, %r: required folders class/name.jpg", folder.classes[0])
        reports = [
            _pack_set(folder, name, Path(out) / name, settings, pool, progress)
            for name in (folder.splits if split is None else (split,))
        ]
    return PackReport(
        shards=tuple(shard for report in reports for shard in report.shards),
        classes=folder.classes,
        samples=sum(report.samples for report in reports),
        bytes=sum(report.bytes for report in reports),
        skipped=folder.skipped,
        kept=tuple(path for report in reports for path in report.kept),
    )


def _check_apart(source: Path, out: Path) -> None:
    inside = out.resolve()
    if source.is_dir() and (source.resolve() == inside or source.resolve() in inside.parents):
        raise ConfigError(f"OUT must lie outside the source, which it would add files to; found {out} in {source}")


def _hold_out(folder: ImageFolder, fraction: float, seed: int) -> ImageFolder:
    """Move a fraction of each class of the training images to the split "val"."""
    others = [split for split in folder.splits if split and split.casefold() not in TRAIN]
    if others or len(folder.splits) > 1:
        raise ConfigError(
            f"val splits the training images of a source without other splits; found {', '.join(folder.splits)}. Leave val out"
        )
    members: dict[str, list[int]] = {}
    for i, image in enumerate(folder.images):
        members.setdefault(image.class_name, []).append(i)
    words = np.random.Philox(key=seed + 2**64).random_raw(len(folder.images))  # other words than the shuffle's
    held: set[int] = set()
    for ids in members.values():
        count = min(max(round(fraction * len(ids)), 1), len(ids) - 1)
        held.update(sorted(ids, key=lambda i: int(words[i]))[:count])
    if not held:
        raise ConfigError(
            f"val needs a class with at least two images; found {counted(len(members), 'class')} of one image each"
        )
    train = folder.splits[0] or TRAIN[0]
    images = tuple(image._replace(split="val" if i in held else train) for i, image in enumerate(folder.images))
    return replace(folder, images=images)


def _pack_set(
    folder: ImageFolder, split: str, out: Path, settings: _Settings, pool: ThreadPoolExecutor, progress: bool
) -> PackReport:
    images = [image for image in folder.images if image.split == split]
    keys = _unique_keys(images)
    run = _run_description(folder, images, settings)
    if settings.shuffle_seed is not None:
        # raw words and a stable sort: NumPy guarantees these bits for ever, but not those of Generator.permutation
        words = np.random.Philox(key=settings.shuffle_seed).random_raw(len(images))
        order = np.argsort(words, kind="stable").tolist()
        images, keys = [images[i] for i in order], [keys[i] for i in order]
    _claim(out, run)
    ids = {name: i for i, name in enumerate(folder.classes)}
    kept: list[str] = []
    with (
        warnings.catch_warnings(),
        ShardWriter(out, split or "shard", settings.samples_per_shard, settings.bytes_per_shard) as shards,
        Progress(f"packing {split}".rstrip(), total=len(images), unit="image", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of broken metadata and large images; threads see this filter too
        for image, key, (data, extension, fine) in zip(
            images, keys, encode_images(folder, images, settings.max_side, settings.quality, pool), strict=True
        ):
            classes = (image.class_name,) if folder.several is None else folder.several[image.path]
            label = " ".join(map(str, sorted(ids[name] for name in classes)))
            shards.write({"__key__": key, extension: data, "cls": label.encode()})
            if not fine:
                kept.append(image.path)
            bar.update()
    write_atomically(out / CLASSES, write_classes(folder.classes))
    write_atomically(out / RUN, json.dumps({**run, "shards": len(shards.done)}, indent=1).encode())
    size = sum(shard.stat().st_size for shard in shards.done)
    return PackReport(tuple(shards.done), folder.classes, len(images), size, folder.skipped, tuple(kept))


def _unique_keys(images: Sequence[Image]) -> list[str]:
    """Return `class/name` for each image, without dots, which would end the key, and with a number added to repeated keys."""
    taken: set[str] = set()
    keys = []
    for image in images:
        path = f"{image.class_name}/{image.name}".lstrip("/")  # with several classes per image, class_name is ""
        base = path.replace(".", "_").lstrip("_")  # a leading "__" marks metadata
        key, number = base, 2
        while key in taken:
            key, number = f"{base}_{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _run_description(folder: ImageFolder, images: Sequence[Image], settings: _Settings) -> dict[str, Any]:
    what: list[object] = [folder.classes, images]
    if folder.several is not None:
        what.append([folder.several[image.path] for image in images])
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return {"source": folder.files.path.name, "images": len(images), IMAGES_DIGEST: digest, **vars(settings)}


def _claim(out: Path, run: dict[str, Any]) -> None:
    """Prepare `out`: refuse shards of another run, remove what an interrupted run left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = next(out.glob("*.tar"), None)
        if found is not None and (difference := _difference(out / RUN, run)):
            raise ConfigError(
                f"{out} already contains {found.name} of another run ({difference}); give an empty folder, "
                "or remove those shards"
            )
        (out / CLASSES).unlink(missing_ok=True)
        for partial in out.glob("*.tar" + PARTIAL):
            partial.unlink()
        write_atomically(out / RUN, json.dumps(run, indent=1).encode())
    except OSError as error:
        raise ConfigError(f"{out}: required a folder to write shards to; {error}") from error


def _difference(path: Path, run: dict[str, Any]) -> str:
    try:
        before = json.loads(path.read_bytes())
        changed = [name for name, value in run.items() if before[name] != value]
        return ", ".join(
            "other images" if name == IMAGES_DIGEST else f"{name} was {before[name]}, is {run[name]}"
            for name in changed
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no {RUN} that `pack` wrote"
