"""Several classes per image, from a table or a JSON file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

from multimix_pipe.errors import ConfigError
from multimix_pipe.shards.index.scan import IMAGE_EXTENSIONS

_CELLS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_SEPARATORS = re.compile(r"[;|,]")
_NO_NAME = re.compile(r"[\[{]|[+-][0-9]+$|[+-]?[0-9]*\.[0-9]+$")
_MAX_SHOWN = 60  # characters of what is wrong

Entries = dict[str, tuple[str, ...]]
"""The classes, or their ids, by the image's path as it is written, with or without folders and extension."""


def read_several(path: Path, classes: Sequence[str] | None) -> tuple[Entries, tuple[str, ...] | None]:
    """Return the classes of images in a file, and the names of all classes if it has a column for each.

        JSON         {"a.jpg": ["cat", "dog"], "b.jpg": [], ...}
        CSV          a header, and a column of 0 and 1 for each class; or two columns, the name and the classes, separated by ;
                     or | (by spaces if they are numbers or in `classes`), of which an image may have several lines
        other text   as CSV, with tabs or other white space between columns

    Raises ConfigError if it is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            entries, columns = _from_json(json.loads(text)), None
        else:
            entries, columns = _from_rows(text.splitlines(), path.suffix == ".csv", classes or ())
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"labels must name a file of image names and their classes; {path}: {error}") from error
    if not entries:
        raise ConfigError(f"labels must name a file of image names and their classes; found none in {path}")
    return entries, columns


def _from_json(found: object) -> Entries:
    if not isinstance(found, dict):
        raise ValueError(f'required {{"name.jpg": ["class", ...], ...}}, found a {type(found).__name__}')
    if {"images", "annotations", "categories"} <= found.keys():
        raise ValueError(
            'required {"name.jpg": ["class", ...], ...}, found annotations of COCO; docs/guides/multilabel.md converts them'
        )
    entries = {}
    for name, classes in found.items():
        items = classes if isinstance(classes, list) else [classes]
        if not all(type(item) in (str, int) for item in items):
            raise ValueError(f"required names or ids of classes, found {_shown(classes)} for {name!r}")
        if len(set(items)) < len(items):
            raise ValueError(f"a class of {name!r} is repeated: {_shown(classes)}; required names or ids")
        entries[name] = tuple(map(str, items))
    return entries


def _from_rows(lines: Sequence[str], commas: bool, classes: Container[str]) -> tuple[Entries, tuple[str, ...] | None]:
    tabs = not commas and any("\t" in line for line in lines[:1])
    cells = csv.reader(lines, delimiter="," if commas else "\t") if commas or tabs else map(str.split, lines)
    rows = [[cell.strip() for cell in row] for row in cells if row]
    if rows and len(rows[0]) > 2 and (commas or _is_table(rows)):
        names = tuple(rows[0][1:])
        return _from_columns(rows, names), names
    if not commas:  # all words after the first are classes
        rows = [line.split(None, 1) for line in lines if line.strip()]
    return _from_lines(rows, classes), None


def _is_table(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether rows are a header and 0 and 1 below it, rather than class ids."""
    header, *others = rows
    below = all(len(row) == len(header) and _zeros_and_ones(row[1:]) for row in others)
    return bool(others) and below and not _zeros_and_ones(header[1:])


def _zeros_and_ones(cells: Iterable[str]) -> bool:
    return all(cell.lower() in _CELLS for cell in cells)


def _from_columns(rows: Sequence[Sequence[str]], names: Sequence[str]) -> Entries:
    entries: Entries = {}
    if _zeros_and_ones(names) or len(set(names)) < len(names):
        raise ValueError(
            f"required a header with the names of different classes, found {', '.join(names)[:_MAX_SHOWN]!r}"
        )
    for line, row in enumerate(rows[1:], 2):
        wrong = next((cell for cell in row[1:] if cell.lower() not in _CELLS), None)
        if wrong is not None or len(row) != len(names) + 1:
            raise ValueError(
                f"row {line}: required 0 or 1 for each of {len(names)} classes, found "
                + (f"{len(row) - 1} cells" if wrong is None else repr(wrong))
                + ". Without such columns, required two: name and classes as in a;b" * (line == 2)
            )
        if row[0] in entries:
            raise ValueError(f"row {line}: {row[0]!r} is repeated")
        entries[row[0]] = tuple(name for name, cell in zip(names, row[1:], strict=True) if _CELLS[cell.lower()])
    return entries


def _from_lines(rows: Iterable[Sequence[str]], classes: Container[str]) -> Entries:
    entries: Entries = {}
    for line, row in enumerate(rows, 1):
        if len(row) > 2:
            raise ValueError(
                f"row {line}: required two columns, name and classes as in a;b, or a header and a column of 0 and 1 for each "
                f"class; found {len(row)} columns"
            )
        found = _split(row[1], classes) if len(row) > 1 else []
        # a list as Python or JSON writes it, a number, or a row of 0 and 1: `_split` would make other classes of them
        ids = all(map(str.isdecimal, found)) and not all(part in classes for part in found)
        if (ids and len(set(found)) < len(found)) or any(_NO_NAME.match(x) and x not in classes for x in found):
            raise ValueError(f"row {line}: required classes as in a;b, each once; found {_shown(row[1])}")
        entries[row[0]] = tuple(dict.fromkeys((*entries.get(row[0], ()), *found)))
    return entries


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _split(text: str, classes: Container[str]) -> list[str]:
    found: list[str] = []
    for part in [text] if text in classes else map(str.strip, _SEPARATORS.split(text)):
        words = part.split()
        apart = part not in classes and all(word.isdecimal() or word in classes for word in words)
        found += words if apart else [part]
    return found


def match(entries: Entries, paths: Iterable[str]) -> Entries:
    """Return the entries by the path of their image, which may have more folders before it than the entry.

    If no entry matches, the first folders of all entries are ignored, as in `/data/images/cat/1.jpg`. Raises ConfigError if an
    entry could mean several images, or two entries the same one.
    """
    ordered = sorted(paths, key=lambda path: (_plain(path).count("/"), path))
    named = [(_plain(name), name) for name in entries]
    while named:
        names: dict[str, str] = {}
        for key, name in named:
            if names.setdefault(key, name) != name:
                raise ConfigError(f"labels must have one entry for each image; found {names[key]!r} and {name!r}")
        if found := _matched(names, ordered):
            return {path: entries[name] for path, name in found.items()}
        named = [(key.partition("/")[2], name) for key, name in named if "/" in key]
    return {}


def _matched(names: dict[str, str], paths: Iterable[str]) -> dict[str, str]:
    """Return the name of each path that has one. Paths come in order of their folders: a whole path before a part of one."""
    found: dict[str, str] = {}
    owner: dict[str, tuple[str, bool]] = {}
    for path in paths:
        key = next((end for end in _ends(path) if end in names), None)
        if key is None:
            continue
        whole = _plain(path).count("/") == key.count("/")
        other, other_whole = owner.setdefault(key, (path, whole))
        if other == path:
            found[path] = names[key]
        elif other_whole == whole:
            raise ConfigError(
                f"labels must name each image; found {names[key]!r}, which could be {other} or {path}. Write the folder, or "
                "the extension, too"
            )
    return found


def _plain(path: str) -> str:
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _ends(path: str) -> Iterator[str]:
    """Yield a path, then parts of it from the longest on, each with and without the extension of an image."""
    end = _plain(path)
    while end:
        yield end
        stem, _, extension = end.rpartition(".")
        if extension.lower() in IMAGE_EXTENSIONS:
            yield stem
        end = end.partition("/")[2]
