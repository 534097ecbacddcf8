"""Class names: the `classes.json` that `pack` writes beside shards, and lists of names that users give."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError

Classes = str | os.PathLike[str] | Sequence[str] | Mapping[str, int]
"""Class names by id, a file of them, or ids by name."""

CLASSES = "classes.json"
"""Name of the file beside shards: {"0": "ant", "1": "cat", ...}."""

MAX_CLASSES = 2**24

logger = logging.getLogger("multimix_pipe")


def read_names(classes: str | os.PathLike[str] | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return class names, by class id: those of a sequence, or of a file: one per line, or a classes.json.

    Raises ConfigError if they are not distinct strings, or the file has none.
    """
    if classes is None:
        return None
    if isinstance(classes, (str, os.PathLike)):
        path = Path(classes)
        try:
            text = path.read_text(encoding="utf-8")
            names = (
                _parse(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"classes must be class names, or a file with one per line; {path}: {error}") from error
    else:
        names = list(classes) if isinstance(classes, Sequence) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        hint = f". Their number is num_classes={classes}" if isinstance(classes, int) else ""
        raise ConfigError(f"classes must be class names, or a file with one per line; found {classes!r}{hint}")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ConfigError(f"class names must be distinct; found {twice!r} twice")
    return tuple(names)


def read_mapping(classes: Classes | None) -> tuple[dict[str, int] | None, tuple[str, ...] | None]:
    """Return the class ids by name, and the names by id, of what `read_names` takes or of a mapping from name to id.

    Several names may have the same id; the first is the class's name. Raises ConfigError for anything else.
    """
    if not isinstance(classes, Mapping):
        names = read_names(classes)
        return (None, None) if names is None else ({name: i for i, name in enumerate(names)}, names)
    for name, number in classes.items():
        if not isinstance(name, str):
            raise ConfigError(f"classes must map names to ids; found the name {name!r}")
        check_int(f"the id of {name!r} in classes", number, 0, MAX_CLASSES)
    if not classes:
        raise ConfigError("classes must map names to ids; found none")
    by_id: dict[int, str] = {}
    for name, number in classes.items():
        by_id.setdefault(int(number), name)
    return {name: int(i) for name, i in classes.items()}, tuple(by_id.get(i, str(i)) for i in range(max(by_id) + 1))


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """Return the names in a folder's classes.json; None if it has none. A file that cannot be read is a WARNING."""
    path = folder / CLASSES
    try:
        return tuple(_parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning('%s is ignored: it must hold {"0": "name", ...} for all class ids: %s', path, error)
        return None


def write_classes(names: Sequence[str]) -> bytes:
    """Return the bytes of a classes.json."""
    return json.dumps(dict(enumerate(names)), indent=0).encode()


def common_classes(shards: Iterable[Path], classes: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Return the class names of `shards`: `classes`, else those of the classes.json beside them, else None.

    Raises ConfigError if a classes.json has other names than `classes`, or than that of another folder.
    """
    wanted, where = classes, "classes="
    for folder in map(Path, dict.fromkeys(map(os.path.dirname, shards))):
        found = read_classes(folder)
        if found is None:
            continue
        if wanted is None:
            wanted, where = found, str(folder / CLASSES)
        elif tuple(wanted) != found:
            raise ConfigError(_difference(wanted, where, found, folder / CLASSES))
    return None if wanted is None else tuple(wanted)


def _difference(wanted: Sequence[str], where: str, found: Sequence[str], path: Path) -> str:
    at = next(
        (i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]),
        min(len(wanted), len(found)),
    )
    first, second = (repr(names[at]) if at < len(names) else "no such class" for names in (wanted, found))
    return (
        f"class ids must mean the same in all shards: class {at} is {first} in {where} and {second} in {path}. Pack that set "
        "again with the other's names: multimix-pipe pack SRC OUT --classes FILE"
    )


def _parse(text: str) -> list[str]:
    """Return the names in {"0": name, ...}, {name: 0, ...} or [name, ...]; ValueError for anything else."""
    found = json.loads(text)
    if isinstance(found, Mapping):
        if found and all(isinstance(value, int) for value in found.values()):
            found = {str(value): name for name, value in found.items()}
        if set(found) != set(map(str, range(len(found)))):
            raise ValueError(f"required the ids 0..{len(found) - 1}, found {', '.join(list(found)[:4])}, ...")
        found = [found[str(i)] for i in range(len(found))]
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise ValueError("required names by id")
    return found
