"""Index files: one a shard, beside it or in a cache folder; written whole or not at all, checked when read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.scan import ROW, Table

log = logging.getLogger(__name__)

MAGIC = "multimix_pipe index"
VERSION = 1
SUFFIX = ".index.npz"
LOCK = ".multimix-index.lock"


def cache_folder(folder: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where the index files of `folder`'s shards go when it is not writable: in `cache_dir`, or in the user's cache."""
    if cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = Path(home) / "multimix_pipe" / "index"
    return Path(cache_dir).absolute() / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def index_name(shard: Path, label: str) -> str:
    """File name of the index of `shard`; labels from JSON have an index of their own."""
    return shard.name + ("" if label == "cls" else "." + quote(label, safe="").replace("%3A", "-")) + SUFFIX


@contextmanager
def locked_folder(folder: Path, cache_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Hold the lock of the place for the index files of `folder`'s shards, and yield it: `folder` or its cache folder.

    Of many processes that open the same new data one builds; the others wait here and then find its files.
    """
    place = folder
    try:
        lock = open(place / LOCK, "ab")  # noqa: SIM115  closed below, whichever of the two it is
    except OSError:
        place = cache_folder(folder, cache_dir)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = open(place / LOCK, "ab")  # noqa: SIM115
        except OSError as error:
            raise ShardError(
                f"no place for the index of the shards in {folder}: required that it or the cache folder is writable "
                f"({error}); give cache_dir=, a writable folder, or set XDG_CACHE_HOME to one"
            ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that indexes %s", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks; safe, as files are replaced whole
            log.warning("%s cannot be locked (%s): processes that start together each build the index", place, error)
        yield place


def save_table(path: Path, table: Table, label: str) -> None:
    """Write `table` to `path` at once: a reader sees the old file or the new one."""
    head = {
        "magic": MAGIC,
        "version": VERSION,
        "label": label,
        "shard_size": table.shard_size,
        "mtime_ns": table.mtime_ns,
        "without_image": table.without_image,
        "extensions": table.extensions,
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            np.savez(
                file,
                head=np.frombuffer(json.dumps(head).encode(), np.uint8),
                rows=table.rows,
                keys=np.frombuffer(table.keys, np.uint8),
            )
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ShardError(f"the index {path} cannot be written: {error}") from error


def load_table(shard: Path, label: str, cache_dir: str | os.PathLike[str] | None) -> Table | None:
    """The index of `shard`, or None where there is none that belongs to it; a stale or damaged one is logged."""
    try:
        stat = os.stat(shard)
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error}") from error
    name = index_name(shard, label)
    for path in (shard.with_name(name), cache_folder(shard.parent, cache_dir) / name):
        try:
            table = _read_table(path, label)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("the index %s is damaged (%s: %s); it is built again", path, type(error).__name__, error)
            continue
        if (table.shard_size, table.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return table
        log.info("the index %s is older than its shard; it is built again", path)
    return None


def _read_table(path: Path, label: str) -> Table:
    # opened here, as numpy leaves a file open that it finds to be no zip
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        head = json.loads(arrays["head"].tobytes())
        found = (head["magic"], head["version"], head["label"])
        if found != (MAGIC, VERSION, label):
            raise ValueError(f"required {(MAGIC, VERSION, label)}, found {found}")
        rows, keys = arrays["rows"], arrays["keys"].tobytes()
    if rows.dtype != ROW or rows.ndim != 1 or int(rows["key_size"].sum()) != len(keys):
        raise ValueError("its arrays do not fit each other")
    return Table(rows, keys, head["shard_size"], head["mtime_ns"], head["without_image"], head["extensions"])
