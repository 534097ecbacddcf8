"""Index files: one a shard, beside it or in a cache folder; written whole or not at all, checked when read.

A file is the CRC-32 of the rest in hex and a line end; a JSON head and a line end; the rows as they lie in memory; the keys.
ImageNet has 1,282 of them: a format that takes one read and no parser, as NumPy's own takes a millisecond a file to open.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.header import MAX_BYTES, MAX_PIXELS
from multimix_pipe.shards.index.scan import FINE, PROBLEMS, ROW, Table

log = logging.getLogger(__name__)

MAGIC = "multimix_pipe index"
VERSION = 3
SUFFIX = ".index"
LOCK = ".multimix-index.lock"

_CHECKSUM_SIZE = 9
_PARTIAL = ".tmp"
_MAX_RATIO = 8  # times its shard, with room: a sample's row and key take fewer bytes than its header in the tar
_MAX_HEAD = 2**16


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
            raise MultiMixError(
                f"no place for the index of the shards in {folder}: required that it or the cache folder is writable "
                f"({error}); give cache_dir=, a writable folder, or set XDG_CACHE_HOME to one"
            ) from error
    with lock:
        if _lock(lock, folder):
            for left in place.glob(f".*{SUFFIX}.*{_PARTIAL}"):  # of a process that was killed while it held the lock
                left.unlink(missing_ok=True)
        yield place


def _lock(lock: BinaryIO, folder: Path) -> bool:
    """Wait for the lock of the index files of `folder`'s shards; False where there are no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that indexes %s", folder)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have none; safe, as files are replaced whole
        log.warning("%s cannot be locked (%s): processes that start together each build the index", lock.name, error)
        return False
    return True


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
        "damage": table.damage,
        "samples": len(table.rows),
    }
    body = b"\n".join((json.dumps(head).encode(), table.rows.tobytes() + table.keys))
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        partial.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise MultiMixError(f"the index {path} cannot be written: {error}") from error


def load_table(shard: Path, label: str, cache_dir: str | os.PathLike[str] | None) -> Table | None:
    """The index of `shard`, or None where there is none that belongs to it; a stale or damaged one is logged."""
    try:
        stat = os.stat(shard)
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error}") from error
    for path in _places(shard, label, cache_dir):
        try:
            table = _read_table(path, label, _MAX_RATIO * stat.st_size + _MAX_HEAD)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.warning("the index %s is damaged (%s: %s); it is built again", path, type(error).__name__, error)
            continue
        if (table.shard_size, table.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return table
        log.info("the index %s is older than its shard; it is built again", path)
    return None


def _places(shard: Path, label: str, cache_dir: str | os.PathLike[str] | None) -> Iterator[str]:
    # strings, as a thousand Paths take longer to make than to read
    name = index_name(shard, label)
    yield os.path.join(os.path.dirname(shard), name)
    yield str(cache_folder(shard.parent, cache_dir) / name)


def _read_table(path: str, label: str, longest: int) -> Table:
    status = os.stat(path)
    if not S_ISREG(status.st_mode) or status.st_size > longest:  # a pipe, say, that gives nothing, or has no end
        raise ValueError(f"required a file of at most {longest:,} bytes")
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    body = memoryview(data)[_CHECKSUM_SIZE:]
    if data[:_CHECKSUM_SIZE] != b"%08x\n" % zlib.crc32(body):
        raise ValueError("its checksum is wrong")
    head_end = data.index(b"\n", _CHECKSUM_SIZE) + 1
    head = json.loads(data[_CHECKSUM_SIZE:head_end])
    found = (head["magic"], head["version"], head["label"])
    if found != (MAGIC, VERSION, label):
        raise ValueError(f"required {(MAGIC, VERSION, label)}, found {found}")
    counts = [head[name] for name in ("samples", "shard_size", "mtime_ns", "without_image")]
    if not all(type(count) is int for count in [*counts, *dict(head["extensions"]).values()]):
        raise ValueError("its head has counts that are no integers")
    if not isinstance(head["damage"], str):
        raise ValueError("its head has a damage that is no text")
    rows = np.frombuffer(data, ROW, head["samples"], head_end)
    keys = memoryview(data)[head_end + rows.nbytes :]
    if int(rows["key_size"].sum()) != len(keys):
        raise ValueError("its parts do not fit each other")
    _check_rows(rows, head["shard_size"])
    extensions, damage = dict(head["extensions"]), head["damage"]
    return Table(rows, keys, head["shard_size"], head["mtime_ns"], head["without_image"], extensions, damage)


def _check_rows(rows: npt.NDArray[np.void], shard_size: int) -> None:
    """Refuse what no scan writes: it comes with the shards, from whoever made them."""
    if not len(rows):
        return
    offset, size = rows["offset"], rows["size"]
    end = offset + size
    negative = (offset | size | end).min() < 0  # the end too, where the sum passes 64 bits
    if negative or end.max() > shard_size or rows["problem"].max() > max(PROBLEMS):
        raise ValueError(
            f"it has samples that do not lie in the {shard_size:,} bytes of its shard, or unknown problems"
        )
    width, height, orientation = rows["width"].astype(np.int64), rows["height"].astype(np.int64), rows["orientation"]
    usable = (width > 0) & (height > 0) & (width * height <= MAX_PIXELS) & (size <= MAX_BYTES) & (rows["label"] >= 0)
    if not (usable | (rows["problem"] != FINE)).all() or orientation.min() < 1 or orientation.max() > 8:
        raise ValueError("it has samples without a known problem whose size, label or orientation cannot be")
