"""Downloads shards from http(s) URLs into a folder, once; only whole tars appear there."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import tarfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, responses
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.progress import Progress
from multimix_pipe.shards.tar import TARFILE_ERRORS, DamagedTarError, HeaderFile, read_batches

_USER = re.compile(r"([a-zA-Z][\w+.-]*://)[^/?#\s'\"]*@")
_QUERY = re.compile(r"([a-zA-Z][\w+.-]*://[^?#\s'\"]*)[?#][^\s'\"]*")
_TIMEOUT = 60.0  # seconds without data
_CHUNK = 2**20
_SHOWN = 40  # bytes of what is no tar


def redacted(text: str) -> str:
    """Return `text` without the passwords and signatures of the URLs in it, for messages."""
    return _QUERY.sub(r"\1?...", _USER.sub(r"\1", text))


def fetch_remote(urls: Sequence[str], cache_dir: str | PathLike[str], *, progress: bool = True) -> list[Path]:
    """Return the paths of the files at `urls` in `cache_dir`; missing files are downloaded, each by one process at a time.

    A file that is already in `cache_dir` is not compared with the server again: empty the folder if shards change but keep their
    names. Raises ShardError if the server does not send a whole tar.
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
    except HTTPError as error:
        error.close()
        # not the server's own words: some repeat the URL, and its signature
        words = f"HTTP status {error.code} {responses.get(error.code, '')}".rstrip()
        raise ShardError(f"{redacted(url)} cannot be downloaded to {target}: {words}") from None
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise ShardError(f"{redacted(url)} cannot be downloaded to {target}: {redacted(str(error))}") from error


def _download(url: str, target: Path, bar: Progress, alone: bool) -> None:
    partial = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(_request(url), timeout=_TIMEOUT) as response, open(partial, "wb") as file:
            expected = response.length  # Content-Length; None if missing or invalid
            if alone:
                bar.total = expected
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            found = file.tell()
        if expected is not None and found != expected:
            raise ShardError(f"the download is incomplete: required {expected:,} bytes, found {found:,}; try again")
        _check_tar(partial, whole=expected is None)
        os.replace(partial, target)
    except ShardError as error:
        raise ShardError(f"{redacted(url)} is not kept as {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _request(url: str) -> urllib.request.Request:
    """Return a request that sends the user and password in `url`, if any, as HTTP's basic authentication."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _check_tar(path: Path, *, whole: bool) -> None:
    """Raise ShardError unless the file at `path` begins as a tar does and, if `whole`, has its end too."""
    with open(path, "rb") as file:
        beginning = file.read(_SHOWN)
        try:
            file.seek(0)
            tarfile.TarFile(fileobj=HeaderFile(file)).close()  # type: ignore[arg-type]
            if not beginning.strip(b"\0"):
                raise ValueError("nothing but zeros")
        except TARFILE_ERRORS as error:
            raise ShardError(
                f"the server sent no tar file but, perhaps, a login page or an error: it begins with {beginning!r}"
            ) from error
        if whole:  # nobody said how many bytes it has
            try:
                for _ in read_batches(file, path):
                    pass
            except DamagedTarError as error:
                raise ShardError(f"the server gave no length, and the download was cut: {error}") from error
