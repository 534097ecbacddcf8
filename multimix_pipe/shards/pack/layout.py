"""Works out which folders of a source are classes and which are splits; refuses where that would be a guess."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from multimix_pipe.errors import ConfigError, printable

log = logging.getLogger(__name__)

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")
"""Names of folders that are splits, in any case."""
TRAIN, TEST = ("train", "training"), ("test", "testing")

_MAX_NAMED = 6
Parts = tuple[str, ...]


@dataclass
class Layout:
    """Where each image belongs."""

    place: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Split ("" for none), class and path within the class folder of each image, by its path."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why an image is left out, by its path."""


def arrange(
    paths: Iterable[str], labels: Mapping[str, str], classes: Sequence[str] | None, split: str | None
) -> Layout:
    """Return the layout of images at `paths`: `class/name.jpg` or `split/class/name.jpg`, within any single folder.

    `labels` has the classes of images that lie in no class folder. `classes` names all class folders, so that nothing else
    is taken for one; without it, a folder is a split if it has the name of one. With `split`, folders that are not splits are
    ignored. Raises ConfigError if folders could be splits or classes.
    """
    parts = _without_wrapper(_parts(paths), () if classes is None else classes)
    if classes is not None:
        return _with_classes(parts, labels, classes)
    splits, parts = _find_splits(parts, split)
    return _with_splits(parts, labels) if splits else _without_splits(parts, labels)


def arrange_labelled(paths: Iterable[str], labelled: Container[str], split: str | None) -> Layout:
    """Return the layout of images whose classes a file names: folders are splits, or a part of the images' names.

    Images at `paths` that are not `labelled` are left out. Raises ConfigError if there are other folders beside splits, unless
    `split` names one.
    """
    layout = Layout()
    splits, parts = _find_splits(_without_wrapper(_parts(paths), ()), split)
    for path, part in parts.items():
        inside = part[0] in splits and len(part) > 1
        if path not in labelled:
            layout.left_out[path] = "without labels"
        elif splits and not inside:
            layout.left_out[path] = "in no split"
        else:
            layout.place[path] = (part[0], "", "/".join(part[1:])) if inside else ("", "", "/".join(part))
    return layout


def _parts(paths: Iterable[str]) -> dict[str, Parts]:
    return {path: tuple(part for part in path.split("/") if part not in ("", ".")) for path in sorted(paths)}


def _find_splits(parts: dict[str, Parts], split: str | None) -> tuple[set[str], dict[str, Parts]]:
    """Return the folders that are splits, and `parts` without what lies in folders beside them."""
    tops = {part[0] for part in parts.values() if len(part) > 1}
    splits = {top for top in tops if _is_split(top)}
    if splits and (others := tops - splits):
        if split is None:
            raise ConfigError(
                f"the folders {_named(splits)} are splits, but beside them is {_named(others)}; pack one split with --split, "
                "move the others away, or name all class folders with --classes FILE"
            )
        parts = {path: part for path, part in parts.items() if part[0] not in others}
    return splits, parts


def _is_split(name: str) -> bool:
    return name.casefold() in SPLITS


def _without_wrapper(parts: dict[str, Parts], classes: Sequence[str]) -> dict[str, Parts]:
    """Drop the single folder around everything, if there is one, from all paths within it."""
    while True:
        tops = Counter(part[0] for part in parts.values() if len(part) > 1)
        deeper = sum(len(part) > 2 for part in parts.values())
        (top,) = tops if len(tops) == 1 else ("",)
        if not top or 2 * deeper <= len(parts) or _is_split(top) or top in classes:
            return parts
        parts = {path: part[1:] if len(part) > 1 else part for path, part in parts.items()}


def _without_splits(parts: dict[str, Parts], labels: Mapping[str, str]) -> Layout:
    layout = Layout()
    loose = {path: part for path, part in parts.items() if len(part) == 1 and part[0] not in labels}
    if 2 * len(loose) > len(parts) > 0:
        raise ConfigError(
            f"required images class/name.jpg; found {_images(loose)} in no folder at all; give their classes with "
            "--labels FILE, or put them into class folders"
        )
    _refuse_unknown_splits(parts)
    for path, part in parts.items():
        _assign(layout, path, "", part, labels)
    return layout


def _refuse_unknown_splits(parts: dict[str, Parts]) -> None:
    """Raise ConfigError if several folders hold the same folders, and few images of their own, as splits do."""
    inner: dict[str, Counter[str]] = {}
    for part in parts.values():
        if len(part) > 1:
            inner.setdefault(part[0], Counter())[part[1] if len(part) > 2 else ""] += 1
    deep = {top: set(found) - {""} for top, found in inner.items() if 2 * found[""] <= found.total()}
    holders = Counter(name for names in deep.values() for name in names)
    shared = {name for name, count in holders.items() if count > 1}
    alike = [top for top, names in deep.items() if names & shared]
    if alike:
        raise ConfigError(
            f"the folders {_named(alike)} could be splits or classes: they share {_named(shared)}; name all class folders "
            f"with --classes FILE, or rename splits to train, val and test"
        )


def _warn_of_foreign_split(layout: Layout) -> None:
    """Warn of a split that has no class of any other split: its folders may be no classes."""
    classes: dict[str, set[str]] = {}
    for split, name, _ in layout.place.values():
        classes.setdefault(split, set()).add(name)
    for split, own in classes.items():
        others = set().union(*(names for other, names in classes.items() if other != split))
        if others and not own & others:
            log.warning(
                "the split %r has the classes %s, none of which another split has; if they are no classes, name the classes with "
                "--classes FILE",
                *(split, _named(own)),
            )


def _with_splits(parts: dict[str, Parts], labels: Mapping[str, str]) -> Layout:
    layout = Layout()
    for split in sorted({part[0] for part in parts.values() if len(part) > 1}):
        inner = {path: part[1:] for path, part in parts.items() if part[0] == split and len(part) > 1}
        inner = _without_wrapper(inner, ())
        flat = {path: part for path, part in inner.items() if len(part) == 1 and part[0] not in labels}
        if 2 * len(flat) <= len(inner):
            for path, part in inner.items():
                _assign(layout, path, split, part, labels)
        elif split.casefold() in TEST:
            layout.left_out |= dict.fromkeys(inner, f"in {split}/ without labels")
        else:
            raise ConfigError(
                f"required images {split}/class/name.jpg; found {_images(flat)} directly in {split}/; give their classes with "
                f"--labels FILE (a table of names and classes, ImageNet's LOC_val_solution.csv, or its devkit), or name all "
                f"class folders with --classes FILE if {split!r} is a class"
            )
    for path, part in parts.items():
        if len(part) == 1:
            _assign(layout, path, "", part, {})
    _warn_of_foreign_split(layout)
    return layout


def _with_classes(parts: dict[str, Parts], labels: Mapping[str, str], classes: Sequence[str]) -> Layout:
    layout, known = Layout(), set(classes)
    above: dict[str, Parts] = {}  # the folders above the class folder
    for path, part in parts.items():
        depth = next((i for i, folder in enumerate(part[:-1]) if folder in known), None)
        if depth is not None:
            above[path] = part[:depth]
        elif part[-1] in labels:
            above[path] = part[:-1]
    folders = {part[:i] for part in above.values() for i in range(len(part) + 1)}
    unknown = {part[:-1] for path, part in parts.items() if path not in above and part[:-1] not in folders}
    if unknown or not above:
        found = _named({"/".join(folder) for folder in unknown}) if unknown else "no image in any of them"
        raise ConfigError(
            f"class folders must be among the {len(classes)} names of --classes, such as {_named(classes)}; found {found}"
        )
    wrong = sorted(prefix for prefix in set(above.values()) if len(prefix) > 1)
    if wrong or len({len(prefix) for prefix in above.values()}) > 1:
        raise ConfigError(
            "class folders must all lie at the top or all within a split; found some in "
            + _named("/".join(prefix) or "." for prefix in set(above.values()))
        )
    for path, part in parts.items():
        prefix = above.get(path)
        if prefix is None:
            _assign(layout, path, "", part[-1:], {})
        else:
            _assign(layout, path, "/".join(prefix), part[len(prefix) :], labels)
    return layout


def _assign(layout: Layout, path: str, split: str, part: Parts, labels: Mapping[str, str]) -> None:
    """Place an image with the path `part` within its split."""
    name = part[-1]
    if len(part) > 1:
        layout.place[path] = split, part[0], "/".join(part[1:])
    elif name in labels:
        layout.place[path] = split, labels[name], name
    else:
        layout.left_out[path] = "in no class folder"


def _images(paths: Mapping[str, Parts]) -> str:
    first = printable(next(iter(paths)))
    return f"{len(paths):,} images ({first}, ...)" if len(paths) > 1 else f"the image {first}"


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(printable(repr(name)) for name in listed[:_MAX_NAMED]) + (
        ", ..." if len(listed) > _MAX_NAMED else ""
    )
