"""Downloads shards from http(s) URLs into a folder, once; only complete files appear there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import urllib.request
from http.client import HTTPException
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from multimix_pipe.errors import ShardError

_TIMEOUT = 60.0  # seconds without data
_CHUNK = 2**20


def fetch_remote(url: str, cache_dir: str | PathLike[str], *, progress: bool = True) -> Path:
    """Path of the file at `url` in `cache_dir`; downloaded where it is not there yet, by one process at a time.

    What is there is not compared with the server again: empty the folder after shards of the same name changed.
    Raises ShardError where the server does not give the whole file.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "shard.tar"
    # the base name is kept for messages, the folder keeps files of the same name from different places apart
    target = Path(cache_dir) / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():  # another process may have fetched it meanwhile
                _download(url, target, progress)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise ShardError(f"{url} cannot be downloaded to {target}: {error}") from error
    return target


def _download(url: str, target: Path, progress: bool) -> None:
    partial = target.with_name(target.name + ".part")
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, open(partial, "wb") as file:
        expected = answer.length  # of the Content-Length; None where there is none that can be read
        with tqdm(total=expected, desc=target.name, unit="B", unit_scale=True, disable=not progress) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        found = file.tell()
    if expected is not None and found != expected:
        raise ShardError(
            f"the download of {url} is incomplete: required {expected:,} bytes, found {found:,}; try again"
        )
    os.replace(partial, target)
