"""Index files, one per shard, next to the shard or in a cache folder. They are written atomically and checked when read.

A file consists of the CRC-32 of the rest in hex and a newline; a JSON header and a newline; the rows as raw memory; the keys.
ImageNet has 1,282 shards: this format takes one read and no parser, while NumPy's takes a millisecond per file to open.
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
from multimix_pipe.shards.index.labels import NO_LABELS
from multimix_pipe.shards.index.problems import FINE, NOTED, PROBLEMS
from multimix_pipe.shards.index.scan import ROW, Table

log = logging.getLogger(__name__)

MAGIC = "multimix_pipe index"
VERSION = 4
SUFFIX = ".index"
LOCK = ".multimix-index.lock"

_KNOWN, _IS_NOTED = np.zeros(256, np.bool_), np.zeros(256, np.bool_)  # by problem code
_KNOWN[[FINE, *PROBLEMS]] = _IS_NOTED[[*NOTED]] = True
_CHECKSUM_SIZE = 9
_PARTIAL = ".tmp"
_MAX_RATIO = 8  # of the sizes of index and shard; generous, as a sample's row and key are smaller than its tar header
_MAX_HEADER = 2**16  # bytes


def cache_folder(folder: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder in `cache_dir` (None: the user's cache) for index files of shards in `folder`."""
    if cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = Path(home) / "multimix_pipe" / "index"
    return Path(cache_dir).absolute() / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def index_name(shard: Path, label: str) -> str:
    """Return the file name of the index of `shard`; each label has its own index."""
    return shard.name + ("" if label == "cls" else "." + quote(label, safe="").replace("%3A", "-")) + SUFFIX


@contextmanager
def locked_folder(folder: Path, cache_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Lock and yield the folder for the index files of shards in `folder`: `folder` itself, or its cache folder.

    If many processes open the same new shards, one builds the index; the others wait here and then find its files.
    """
    place = folder
    try:
        lock = open(place / LOCK, "ab")  # noqa: SIM115  closed below
    except OSError:
        place = cache_folder(folder, cache_dir)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = open(place / LOCK, "ab")  # noqa: SIM115
        except OSError as error:
            raise MultiMixError(
                f"the index of the shards in {folder} cannot be written: required that this folder or the cache folder is "
                f"writable ({error}); set cache_dir= or XDG_CACHE_HOME to a writable folder"
            ) from error
    with lock:
        if _lock(lock, folder):
            for left in place.glob(f".*{SUFFIX}.*{_PARTIAL}"):  # by a process that was killed while it held the lock
                left.unlink(missing_ok=True)
        yield place


def _lock(lock: BinaryIO, folder: Path) -> bool:
    """Wait for the lock for the shards in `folder`; False if the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that indexes %s", folder)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems; still safe, as index files are written atomically
        log.warning("%s cannot be locked (%s): processes that start together each build the index", lock.name, error)
        return False
    return True


def save_table(path: Path, table: Table, label: str) -> None:
    """Write `table` to `path` atomically: a reader sees either the old file or the new one."""
    header = {
        "magic": MAGIC,
        "version": VERSION,
        "label": label,
        "shard_size": table.shard_size,
        "mtime_ns": table.mtime_ns,
        "without_image": table.without_image,
        "extensions": table.extensions,
        "damage": table.damage,
        "notes": table.notes,
        "samples": len(table.rows),
    }
    body = b"\n".join((json.dumps(header).encode(), table.rows.tobytes() + table.keys))
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        partial.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise MultiMixError(f"the index {path} cannot be written: {error}") from error


def load_table(
    shard: Path, label: str, cache_dir: str | os.PathLike[str] | None, *, again: bool = False
) -> Table | None:
    """Load the index of `shard`; None if none matches the shard. Others are logged, unless it is asked `again`."""
    stale, damaged = (logging.DEBUG, logging.DEBUG) if again else (logging.INFO, logging.WARNING)
    try:
        stat = os.stat(shard)
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error}") from error
    for path in _places(shard, label, cache_dir):
        try:
            table = _read_table(path, label, _MAX_RATIO * stat.st_size + _MAX_HEADER)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.log(damaged, "the index %s is damaged (%s: %s) and will be rebuilt", path, type(error).__name__, error)
            continue
        if (table.shard_size, table.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return table
        log.log(stale, "the index %s does not match its shard and will be rebuilt", path)
    return None


def _places(shard: Path, label: str, cache_dir: str | os.PathLike[str] | None) -> Iterator[str]:
    # strings: creating a thousand Paths takes longer than reading the files
    name = index_name(shard, label)
    yield os.path.join(os.path.dirname(shard), name)
    yield str(cache_folder(shard.parent, cache_dir) / name)


def _read_table(path: str, label: str, max_bytes: int) -> Table:
    status = os.stat(path)
    if not S_ISREG(status.st_mode) or status.st_size > max_bytes:  # a pipe could block, or never end
        raise ValueError(f"required a file of at most {max_bytes:,} bytes")
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    body = memoryview(data)[_CHECKSUM_SIZE:]
    if data[:_CHECKSUM_SIZE] != b"%08x\n" % zlib.crc32(body):
        raise ValueError("its checksum is wrong")
    header_end = data.index(b"\n", _CHECKSUM_SIZE) + 1
    header = json.loads(data[_CHECKSUM_SIZE:header_end])
    found = (header["magic"], header["version"], header["label"])
    if found != (MAGIC, VERSION, label):
        raise ValueError(f"required {(MAGIC, VERSION, label)}, found {found}")
    counts = [header[name] for name in ("samples", "shard_size", "mtime_ns", "without_image")]
    if not all(type(count) is int for count in [*counts, *dict(header["extensions"]).values()]):
        raise ValueError("its header has counts that are not integers")
    extensions, damage, notes = dict(header["extensions"]), header["damage"], tuple(header["notes"])
    if not all(isinstance(text, str) for text in (damage, *notes)):
        raise ValueError("its header has texts that are not strings")
    rows = np.frombuffer(data, ROW, header["samples"], header_end)
    keys = memoryview(data)[header_end + rows.nbytes :]
    if int(rows["key_size"].sum()) != len(keys):
        raise ValueError("its rows and keys do not match")
    _check_rows(rows, header["shard_size"], len(notes), -1 if label == NO_LABELS else 0)
    return Table(
        rows, keys, header["shard_size"], header["mtime_ns"], header["without_image"], extensions, damage, notes
    )


def _check_rows(rows: npt.NDArray[np.void], shard_size: int, notes: int, lowest: int) -> None:
    """Raise ValueError for rows that no scan writes: like the shards, index files come from untrusted sources."""
    if not len(rows):
        return
    offset, size, problem = rows["offset"], rows["size"], rows["problem"]
    end = offset + size
    negative = (offset | size | end).min() < 0  # `end` too, as the sum may overflow
    if negative or end.max() > shard_size or (problem.max() and not _KNOWN[problem].all()):
        raise ValueError(f"it has samples outside the {shard_size:,} bytes of its shard, or unknown problem codes")
    width, height, orientation = rows["width"].astype(np.int64), rows["height"].astype(np.int64), rows["orientation"]
    usable = (
        (width > 0) & (height > 0) & (width * height <= MAX_PIXELS) & (size <= MAX_BYTES) & (rows["label"] >= lowest)
    )
    if not (usable | (problem != FINE)).all() or orientation.min() < 1 or orientation.max() > 8:
        raise ValueError("it has samples without a problem whose size, label or orientation is out of range")
    noted = rows["label"][_IS_NOTED[problem]] if problem.max() else problem[:0]
    if len(noted) and not -1 <= noted.min() <= noted.max() < notes:
        raise ValueError("it has samples whose note does not exist")
