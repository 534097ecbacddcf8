"""Lists the images of an image folder (`class/name.jpg`), or of a zip or tar of one, with their classes and splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multimix_pipe.config import check_bool
from multimix_pipe.errors import ConfigError, counted, printable
from multimix_pipe.shards.classes import read_names
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS
from multimix_pipe.shards.pack.labels import Labels, find_labels
from multimix_pipe.shards.pack.layout import SPLITS, Layout, arrange, arrange_labelled
from multimix_pipe.shards.pack.several import match, read_several
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
    several: Mapping[str, tuple[str, ...]] | None = None
    """The classes of each image by its path, if it may have several; `class_name` is then ""."""

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
    multilabel: bool = False,
) -> ImageFolder:
    """List the images of `source`, a folder, zip or tar of `class/name.jpg`, as torchvision's ImageFolder does.

    Class ids are positions in `classes` (names, or a file of them), else in the sorted class names. Images in subfolders of a
    class folder belong to the class. A single folder around everything is skipped, and a level of SPLITS above the classes
    gives splits, which share one list of classes. Images in no class folder take their class from the table `labels`, or from
    ImageNet's own files in the source. Hidden files and __MACOSX are ignored.

    With `multilabel`, the classes of all images are those in `labels`, see `read_several`, and no folder is a class. Images
    without an entry are left out.

    Raises ConfigError if there are no images with a class, and where it would be a guess which folders are classes.
    """
    check_bool("multilabel", multilabel)
    if multilabel and labels is None:
        raise ConfigError(
            "multilabel=True (--multilabel) needs labels=FILE (--labels) with the classes of each image; found none"
        )
    files = open_files(Path(source))
    try:
        names, file = read_names(classes), None if labels is None else Path(labels)
        if multilabel:
            assert file is not None
            return _labelled(files, names, file, split)
        return _arranged(files, names, find_labels(files, file), split)
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
    used = {class_name for _, class_name, _ in layout.place.values()}
    return _listed(files, shown, layout, classes, used)


def _listed(
    files: Files,
    shown: Iterable[str],
    layout: Layout,
    classes: tuple[str, ...] | None,
    used: Collection[str],
    several: Mapping[str, tuple[str, ...]] | None = None,
) -> ImageFolder:
    """Return the images of a layout. Without `classes` they are those in `used`. Raises ConfigError if others are used."""
    if classes is not None and (unknown := sorted(set(used) - set(classes))):
        raise ConfigError(f"{files.path}: labels must be among the names of --classes; found {unknown[0]!r}")
    images = []
    for path in sorted(layout.place):
        split_name, class_name, inner = layout.place[path]
        stem, _, extension = inner.rpartition(".")
        images.append(Image(path, files.sizes[path], split_name, class_name, stem, extension.lower()))
    names, skipped = classes or tuple(sorted(used)), _skipped(shown, layout.left_out, set(layout.place))
    return ImageFolder(files, tuple(images), names, skipped, several)


def _labelled(files: Files, classes: tuple[str, ...] | None, file: Path, split: str | None) -> ImageFolder:
    shown = [name for name in files.sizes if not _hidden(name)]
    paths = {name for name in shown if _is_image(name)}
    try:
        entries, columns = read_several(file, classes)
        labels = match(entries, paths)
        if not labels:
            raise ConfigError(
                f"labels must name images of the source; found {counted(len(paths), 'image')}{_first(paths)} and "
                f"{counted(len(entries), 'name')}{_first(entries)} in {file}"
            )
        layout = arrange_labelled(paths, labels, split)
        known = classes or columns
        name_of = _names_of({label for own in labels.values() for label in own}, known or ())
        if not known:
            _check_found(name_of, file)
    except ConfigError as error:
        raise ConfigError(f"{files.path}: {error}") from error
    several = {path: tuple(name_of[label] for label in labels[path]) for path in layout.place}
    return _listed(files, shown, layout, known, name_of.values(), several)


def _check_found(names: Collection[str], file: Path) -> None:
    """Raise ConfigError if a file that alone decides which classes there are has none, or some that may be several."""
    if not names:
        raise ConfigError(f"labels must give some image a class; found none in {file}")
    if several := next((name for name in sorted(names) if _is_joined(name, names)), None):
        raise ConfigError(
            f"labels must separate classes by ; or |; found {several!r}, whose words are classes, too, in {file}. Name all "
            "classes with --classes FILE; spaces then separate them, too, unless they are a part of a name"
        )


def _is_joined(label: str, labels: Collection[str]) -> bool:
    """Return whether a label seems to be several ids, or several of `labels`, with spaces between them."""
    words = label.split()
    return len(words) > 1 and all(word.isdecimal() or word in labels for word in words)


def _first(names: Iterable[str]) -> str:
    first = next(iter(sorted(names)), None)
    return "" if first is None else f" ({printable(first)}, ...)"


def _translated(labels: Labels, paths: Iterable[str], classes: Sequence[str] | None) -> Labels:
    """Return the labels of images in `paths`; class ids, as in Caffe's val.txt, are positions in the sorted classes."""
    used = {}
    for path in paths:
        name = path.rpartition("/")[2]
        label = labels.get(name) or labels.get(name.rpartition(".")[0])
        if label is not None:
            used[name] = label
    own = set(used.values())
    joined = (label for label in sorted(own) if ";" in label or "|" in label or _is_joined(label, own))
    if classes is None and (several := next(joined, None)):
        raise ConfigError(
            f"labels must give each image one class; found {several!r}. Several classes per image need multilabel=True "
            "(--multilabel); if it is the name of a class, name all with --classes FILE"
        )
    in_folders = {path.split("/")[-2] for path in paths if "/" in path and path.rpartition("/")[2] not in used}
    name_of = _names_of(own, classes or sorted(in_folders))
    return {name: name_of[label] for name, label in used.items()}


def _names_of(labels: set[str], names: Sequence[str]) -> dict[str, str]:
    """Return the names of the classes that `labels` stand for: positions in `names` if all are numbers, else names themselves."""
    if not all(label.isdecimal() for label in labels) or labels <= set(names):
        return {label: label for label in labels}
    largest = max(map(int, labels))
    if largest >= len(names):
        raise ConfigError(
            f"labels that are numbers must be positions in the {len(names)} classes; found {largest}; name the classes with "
            "--classes FILE"
        )
    return {label: names[int(label)] for label in labels}


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
