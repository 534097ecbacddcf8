"""Object stores (s3, gs, hf, ...), listed and read by fsspec."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from multimix_pipe.errors import ConfigError, ShardError, redacted

log = logging.getLogger(__name__)

_MAX_NAMED = 3


class _Transferred(fsspec.Callback):  # type: ignore[misc]  # untyped
    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__()
        self._advance = advance

    def relative_update(self, inc: int = 1) -> None:
        self._advance(inc)


def expand(names: Sequence[str]) -> list[str]:
    """Return the URLs of the shards: a glob or a folder stands for its *.tar, sorted by name.

    Raises ShardError if it has none, ConfigError without the package that a scheme needs, and the errors of that package.
    """
    found: list[str] = []
    for name in names:
        store, path = _opened(name)
        is_glob = any(wild in path for wild in "*?[")
        if not is_glob and (path.endswith(".tar") or not store.isdir(path)):
            found.append(name)
            continue
        shards = store.glob(path if is_glob else posixpath.join(path, "*.tar"))
        if not (shards := sorted(shard for shard in shards if shard.endswith(".tar"))):
            raise ShardError(
                f"no shards: required *.tar files at {redacted(name)}, found none{'' if is_glob else _folders(store, path)}"
            )
        found += map(store.unstrip_protocol, shards)
    return found


def _folders(store: Any, path: str) -> str:
    entries = store.ls(path, detail=True)
    folders = sorted(store.unstrip_protocol(entry["name"]) for entry in entries if entry["type"] == "directory")
    named = ", ".join(folders[:_MAX_NAMED]) + ", ..." * (len(folders) > _MAX_NAMED)
    return f" there, but folders: {named}" * bool(folders)


def get(url: str, target: Path, advance: Callable[[int], None]) -> int:
    """Copy the object at `url` to `target` and return the size that the store states; calls `advance(n)` after n more bytes."""
    store, path = _opened(url)
    store.get_file(path, str(target), callback=_Transferred(advance))
    return int(store.size(path))


def read_if_there(url: str) -> bytes | None:
    """Return the bytes of a small object; None if there is none, or, with a warning, if it cannot be read."""
    store, path = _opened(url)
    try:
        return bytes(store.cat_file(path))
    except FileNotFoundError:
        return None
    except Exception as error:  # each store has errors of its own, and some refuse to say that an object is not there
        log.warning(
            "%s cannot be read and is left out: %s: %s", redacted(url), type(error).__name__, redacted(str(error))
        )
        return None


def _opened(url: str) -> tuple[Any, str]:
    try:
        store, path = url_to_fs(url)
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known: x"
        raise ConfigError(f"{redacted(url)} cannot be read: {redacted(str(error))}") from None
    return store, str(path)
