"""Downloads shards from http(s) URLs into a folder, once; only complete files appear there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.progress import Progress

_USER = re.compile(r"([a-zA-Z][\w+.-]*://)[^/?#\s'\"]*@")
_QUERY = re.compile(r"([a-zA-Z][\w+.-]*://[^?#\s'\"]*)[?#][^\s'\"]*")
_TIMEOUT = 60.0  # seconds without data
_CHUNK = 2**20


def redacted(text: str) -> str:
    """Return `text` without the passwords and signatures of the URLs in it, for messages."""
    return _QUERY.sub(r"\1?...", _USER.sub(r"\1", text))


def fetch_remote(urls: Sequence[str], cache_dir: str | PathLike[str], *, progress: bool = True) -> list[Path]:
    """Return the paths of the files at `urls` in `cache_dir`; missing files are downloaded, each by one process at a time.

    A file that is already in `cache_dir` is not compared with the server again: empty the folder if shards change but keep their
    names. Raises ShardError if the server does not send a complete file.
    """
    targets = [_target(url, Path(cache_dir)) for url in urls]
    missing = [(url, target) for url, target in zip(urls, targets, strict=True) if not target.is_file()]
    show = progress and bool(missing)
    with Progress("downloading", total=None, unit="B", unit_scale=True, disable=not show) as bar:
        for position, (url, target) in enumerate(missing, start=1):
            bar.set_postfix_str(f"{target.name}, {position:,} of {len(missing):,}", refresh=False)
            _fetch(url, target, bar, alone=len(missing) == 1)
    return targets


def _target(url: str, cache_dir: Path) -> Path:
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "shard.tar"
    # the base name is kept for messages, the folder keeps files of the same name from different places apart
    return cache_dir / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def _fetch(url: str, target: Path, bar: Progress, alone: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():  # another process may have fetched it meanwhile
                _download(url, target, bar, alone)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise ShardError(f"{url} cannot be downloaded to {target}: {error}") from error


def _download(url: str, target: Path, bar: Progress, alone: bool) -> None:
    partial = target.with_name(target.name + ".part")
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(partial, "wb") as file:
        expected = response.length  # Content-Length; None if missing or invalid
        if alone:
            bar.total = expected
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        found = file.tell()
    if expected is not None and found != expected:
        raise ShardError(
            f"the download of {url} is incomplete: required {expected:,} bytes, found {found:,}; try again"
        )
    os.replace(partial, target)
