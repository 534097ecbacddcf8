"""Lists the images of an image folder (`class/name.jpg`), or of a zip or tar of one, with their classes and splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multimix_pipe.errors import ConfigError, printable
from multimix_pipe.shards.classes import read_names
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS
from multimix_pipe.shards.pack.labels import Labels, find_labels
from multimix_pipe.shards.pack.layout import SPLITS, arrange
from multimix_pipe.shards.pack.source import Files, open_files

__all__ = ["SPLITS", "Image", "ImageFolder", "Skipped", "open_image_folder"]


class Image(NamedTuple):
    """An image file: its path in the source, its size in bytes, its split and its class."""

    path: str
    size: int
    split: str
    """"" if the source has no splits."""
    class_name: str
    name: str
    """Path within the class folder, without the extension."""
    extension: str


class Skipped(NamedTuple):
    """Files of the source that were left out for the same reason."""

    files: int
    what: str
    """An extension (".txt"), or "image" and where such images lie."""
    example: str
    """Path of the first one."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of a source, sorted by path. A class id is a position in `classes`."""

    files: Files
    images: tuple[Image, ...]
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    """What is not packed, most frequent first."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Sorted names of the splits; ("",) if there are none."""
        return tuple(sorted({image.split for image in self.images}))

    def read(self, image: Image) -> bytes:
        """Return the encoded bytes of `image`. Thread-safe. Raises ShardError if they cannot be read."""
        return self.files.read(image.path)


def open_image_folder(
    source: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> ImageFolder:
    """List the images of `source`, a folder, zip or tar of `class/name.jpg`, as torchvision's ImageFolder does.

    Class ids are positions in `classes` (names, or a file of them), else in the sorted class names. Images in subfolders of a
    class folder belong to the class. A single folder around everything is skipped, and a level of SPLITS above the classes
    gives splits, which share one list of classes. Images in no class folder take their class from the table `labels`, or from
    ImageNet's own files in the source. Hidden files and __MACOSX are ignored.

    Raises ConfigError if there are no images with a class, and where it would be a guess which folders are classes.
    """
    files = open_files(Path(source))
    try:
        return _arranged(
            files, read_names(classes), find_labels(files, None if labels is None else Path(labels)), split
        )
    except BaseException:
        files.__exit__()
        raise


def _arranged(files: Files, classes: tuple[str, ...] | None, labels: Labels, split: str | None) -> ImageFolder:
    shown = [name for name in files.sizes if not _hidden(name)]
    paths = {name for name in shown if _is_image(name)}
    try:
        layout = arrange(paths, _translated(labels, paths, classes), classes, split) if paths else None
    except ConfigError as error:
        raise ConfigError(f"{files.path}: {error}") from error
    if layout is None or not layout.place:
        inner = next((name for name in shown if name.endswith((".zip", ".tar", ".tgz", ".tar.gz"))), None)
        advice = f". Unpack {printable(inner)} first; shards are opened as they are" if inner and not paths else ""
        found = ", ".join(f"{s.files:,} {s.what} ({printable(s.example)})" for s in _skipped(shown, {}, set())[:8])
        raise ConfigError(
            f"{files.path}: required images class/name.jpg (.{', .'.join(IMAGE_EXTENSIONS)}); found "
            + (f"{found or 'no files'}" if layout is None else f"{len(paths):,} images, none with a class")
            + advice
        )
    images = []
    for path in sorted(layout.place):
        split_name, class_name, inner = layout.place[path]
        stem, _, extension = inner.rpartition(".")
        images.append(Image(path, files.sizes[path], split_name, class_name, stem, extension.lower()))
    found_classes = {image.class_name for image in images}
    if classes is not None and (unknown := sorted(found_classes - set(classes))):
        raise ConfigError(f"{files.path}: labels must be among the names of --classes; found {unknown[0]!r}")
    names = classes or tuple(sorted(found_classes))
    return ImageFolder(files, tuple(images), names, _skipped(shown, layout.left_out, set(layout.place)))


def _translated(labels: Labels, paths: Iterable[str], classes: Sequence[str] | None) -> Labels:
    """Return the labels of images in `paths`; class ids, as in Caffe's val.txt, are positions in the sorted classes."""
    used = {}
    for path in paths:
        name = path.rpartition("/")[2]
        label = labels.get(name) or labels.get(name.rpartition(".")[0])
        if label is not None:
            used[name] = label
    if not used or not all(label.isdecimal() for label in used.values()):
        return used
    names = list(
        classes
        or sorted({path.split("/")[-2] for path in paths if "/" in path and path.rpartition("/")[2] not in used})
    )
    if set(used.values()) <= set(names):
        return used
    if max(map(int, used.values())) >= len(names):
        raise ConfigError(
            f"labels that are numbers must be positions in the {len(names)} classes; found {max(map(int, used.values()))}; "
            "name the classes with --classes FILE"
        )
    return {name: names[int(label)] for name, label in used.items()}


def _skipped(shown: Iterable[str], left_out: dict[str, str], placed: set[str]) -> tuple[Skipped, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for name in sorted(shown):
        if name in placed:
            continue
        base, dot, extension = name.rpartition("/")[2].rpartition(".")
        what = (
            f"image {left_out[name]}"
            if name in left_out
            else f".{extension.lower()}"
            if base and dot
            else "no extension"
        )
        counts[what] += 1
        examples.setdefault(what, name)
    return tuple(Skipped(count, what, examples[what]) for what, count in counts.most_common())


def _hidden(name: str) -> bool:
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _is_image(name: str) -> bool:
    base, dot, extension = name.rpartition("/")[2].rpartition(".")
    return bool(base and dot) and extension.lower() in IMAGE_EXTENSIONS
