"""Lists the images of an image folder (`class/name.jpg`) or a zip of one, with their classes and splits."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS

SPLITS = ("train", "val", "valid", "validation", "test")


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


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder or zip, sorted by path. A class id is a position in `classes`."""

    source: Path
    images: tuple[Image, ...]
    classes: tuple[str, ...]
    skipped: int
    """Number of files that are not images in a class folder."""
    archive: zipfile.ZipFile | None

    @property
    def splits(self) -> tuple[str, ...]:
        """Sorted names of the splits; ("",) if there are none."""
        return tuple(sorted({image.split for image in self.images}))

    def read(self, image: Image) -> bytes:
        """Return the encoded bytes of `image`. Thread-safe. Raises ShardError if they cannot be read."""
        try:
            if self.archive is not None:
                return self.archive.read(image.path)
            return (self.source / image.path).read_bytes()
        except (OSError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
            raise ShardError(f"{self.source} : {image.path} cannot be read: {error}") from error

    def opened(self) -> AbstractContextManager[object]:
        """Return a context manager that closes the zip, if there is one."""
        return self.archive if self.archive is not None else nullcontext()


def open_image_folder(source: str | os.PathLike[str]) -> ImageFolder:
    """List the images of `source`, a folder or zip of `class/name.jpg`, as torchvision's ImageFolder does.

    Class ids are positions in the sorted class names. Images in subfolders of a class folder belong to the class. A single
    folder around everything is skipped, and a level `train | val | valid | validation | test` above the classes gives
    splits, which share one list of classes. Hidden files and __MACOSX are ignored.

    Raises ConfigError if there are no images in class folders.
    """
    path = Path(source)
    archive = None
    if path.is_dir():
        files = dict(_walk(path))
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        files = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
    else:
        found = "a file of another kind" if path.exists() else "nothing there"
        raise ConfigError(f"{path}: required a folder or zip of images class/name.jpg, found {found}")
    shown = {name: size for name, size in files.items() if not _hidden(name)}
    images = _arrange({name: size for name, size in shown.items() if _is_image(name)})
    if not images:
        raise ConfigError(
            f"{path}: required images class/name.jpg (.{', .'.join(IMAGE_EXTENSIONS)}), "
            f"found none among {len(files)} files"
        )
    classes = tuple(sorted({image.class_name for image in images}))
    return ImageFolder(path, tuple(images), classes, len(shown) - len(images), archive)


def _walk(root: Path) -> Iterable[tuple[str, int]]:
    for folder, _, names in os.walk(root, followlinks=True):  # like torchvision: class folders may be symbolic links
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                yield os.path.relpath(path, root).replace(os.sep, "/"), os.path.getsize(path)


def _hidden(name: str) -> bool:
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _is_image(name: str) -> bool:
    base, dot, extension = name.rpartition("/")[2].rpartition(".")
    return bool(base and dot) and extension.lower() in IMAGE_EXTENSIONS


def _arrange(sizes: dict[str, int]) -> list[Image]:
    in_class = {name: [part for part in name.split("/") if part not in ("", ".")] for name in sorted(sizes)}
    in_class = {name: parts for name, parts in in_class.items() if len(parts) >= 2}
    while len({parts[0] for parts in in_class.values()}) == 1 and min(map(len, in_class.values())) >= 3:
        if next(iter(in_class.values()))[0] in SPLITS:
            break
        in_class = {name: parts[1:] for name, parts in in_class.items()}
    split = bool(in_class) and all(parts[0] in SPLITS and len(parts) >= 3 for parts in in_class.values())
    images = []
    for name, parts in in_class.items():
        inner = parts[1:] if split else parts
        stem, _, extension = "/".join(inner[1:]).rpartition(".")
        images.append(Image(name, sizes[name], parts[0] if split else "", inner[0], stem, extension.lower()))
    return images
