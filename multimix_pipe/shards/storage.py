"""Downloads shards from URLs into a folder, once, several at a time; only whole tars appear there."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from http.client import HTTPException, responses
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

from multimix_pipe.errors import MultiMixError, ShardError, redacted
from multimix_pipe.shards import object_store
from multimix_pipe.shards.classes import CLASSES
from multimix_pipe.shards.progress import Progress
from multimix_pipe.shards.tar import TARFILE_ERRORS, DamagedTarError, HeaderFile, read_batches

_AT_ONCE = 8
"""Downloads of a process at the same time: one connection is rarely as fast as the network."""
_TIMEOUT = 60.0  # seconds without data
_CHUNK = 2**20
_SHOWN = 40  # bytes of what is no tar

Advance = Callable[[int], None]


def fetch_remote(names: Sequence[str], cache_dir: str | PathLike[str], *, progress: bool = True) -> list[Path]:
    """Return the paths in `cache_dir` of the shards at URLs; missing files are downloaded, each by one process at a time.

    In an object store a glob or a folder stands for its *.tar, and the classes.json beside shards comes with them. A file that
    is already in `cache_dir` is not compared with the server again: empty the folder if shards change but keep their names.
    Raises ShardError if a server does not send a whole tar, and ConfigError without the package that a scheme needs.
    """
    with _explained(f"{redacted(names[0])} cannot be listed"):
        urls = list(names) if _is_http(names[0]) else object_store.expand(names)
    targets = [_target(url, Path(cache_dir)) for url in urls]
    missing = {target: url for url, target in zip(urls, targets, strict=True) if not target.is_file()}
    unnamed = {}
    if urls != list(names):  # listed just now, so that one more request does no harm: the names may have come later
        unnamed = {t: url for url, t in zip(urls, targets, strict=True) if not (t.parent / CLASSES).exists()}
    _fetch_classes(unnamed | missing)
    if missing:
        with Progress("downloading", total=None, unit="B", unit_scale=True, disable=not progress) as bar:
            _fetch_all(missing, bar)
    return targets


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _target(url: str, cache_dir: Path) -> Path:
    name = PurePosixPath(unquote(urlsplit(url).path if _is_http(url) else url)).name or "shard.tar"
    # the base name is kept for messages, the folder keeps files of the same name from different places apart. A store's folder
    # is one here too; a server's is not, as what follows `?` may say which file it is
    place = url if _is_http(url) else url.rpartition("/")[0]
    return cache_dir / hashlib.sha256(place.encode()).hexdigest()[:16] / name


def _fetch_classes(shards: dict[Path, str]) -> None:
    for folder, url in {target.parent: url for target, url in shards.items() if not _is_http(url)}.items():
        beside = f"{url.rpartition('/')[0]}/{CLASSES}"
        with _explained(f"{redacted(beside)} cannot be downloaded to {folder / CLASSES}"):
            if data := object_store.read_if_there(beside):
                folder.mkdir(parents=True, exist_ok=True)
                partial = folder / f".{CLASSES}.{os.getpid()}"
                partial.write_bytes(data)
                os.replace(partial, folder / CLASSES)


def _fetch_all(missing: dict[Path, str], bar: Progress) -> None:
    stop, lock = threading.Event(), threading.Lock()

    def advance(count: int) -> None:
        if stop.is_set():
            raise InterruptedError("another download failed")
        with lock:
            bar.update(count)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            downloads = [pool.submit(_fetch, url, target, advance) for target, url in missing.items()]
            for done, download in enumerate(as_completed(downloads), start=1):
                download.result()
                with lock:
                    bar.set_postfix_str(f"{done:,} of {len(missing):,} shards", refresh=False)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(url: str, target: Path, advance: Advance) -> None:
    partial = target.with_name(target.name + ".part")
    with _explained(f"{redacted(url)} cannot be downloaded to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "ab") as lock:
            while not _locked(lock.fileno()):  # another process downloads it
                advance(0)
                time.sleep(0.1)
            if target.is_file():
                return
            try:
                expected = (_get if _is_http(url) else object_store.get)(url, partial, advance)
                _check(partial, expected)
                os.replace(partial, target)
            except ShardError as error:
                raise ShardError(f"{redacted(url)} is not kept as {target}: {error}") from error
            finally:
                partial.unlink(missing_ok=True)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except MultiMixError:
        raise
    except HTTPError as error:
        error.close()
        # not the server's own words: some repeat the URL, and its signature
        words = f"HTTP status {error.code} {responses.get(error.code, '')}".rstrip()
        raise ShardError(f"{what}: {words}") from None
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise ShardError(f"{what}: {redacted(str(error))}") from error
    except Exception as error:  # each object store has errors of its own
        raise ShardError(f"{what}: {type(error).__name__}: {redacted(str(error))}") from None


def _get(url: str, target: Path, advance: Advance) -> int | None:
    """Copy what a server sends to `target`; return the length that the server states, or None."""
    with urllib.request.urlopen(_request(url), timeout=_TIMEOUT) as response, open(target, "wb") as file:
        length: int | None = response.length  # Content-Length; None if missing or invalid
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            advance(len(chunk))
    return length


def _request(url: str) -> urllib.request.Request:
    """Return a request that sends the user and password in `url`, if any, as HTTP's basic authentication."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _check(path: Path, expected: int | None) -> None:
    """Raise ShardError unless a file has `expected` bytes and begins as a tar does, and, if None, has a tar's end too."""
    found = path.stat().st_size
    if expected is not None and found != expected:
        raise ShardError(f"the download is incomplete: required {expected:,} bytes, found {found:,}; try again")
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
        if expected is None:
            try:
                for _ in read_batches(file, path):
                    pass
            except DamagedTarError as error:
                raise ShardError(f"the server gave no length, and the download was cut: {error}") from error
