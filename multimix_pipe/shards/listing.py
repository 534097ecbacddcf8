"""Resolves paths, globs, brace patterns, folders and URLs to a list of shards."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from glob import escape, glob, iglob
from itertools import islice
from mimetypes import guess_type
from os import PathLike
from pathlib import Path

from braceexpand import braceexpand

from multimix_pipe.errors import ConfigError, ShardError, counted, redacted
from multimix_pipe.shards.packed import RUN

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_KINDS = "a path, glob, brace pattern, folder or URL, or a list of those"
_MAX_FOLDERS_SEARCHED, _MAX_FILES_SEARCHED = 20, 100  # an image folder has thousands, with many files in each


def list_shards(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    cache_dir: str | PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> tuple[Path, ...]:
    """Return the absolute paths of the shards in `source`, in its order; those of a glob or a folder are sorted by name.

    `source` is a path, a glob, a brace pattern (`train-{000000..001281}.tar`), a folder (its *.tar), a URL, or a list of those.
    Globs and folders match only *.tar files. http(s) URLs may be brace patterns; those of object stores, which fsspec reads
    (s3, gs, hf, ...), also globs and folders. They are downloaded into `cache_dir`.

    Raises ShardError if a shard is missing, and ConfigError if `source` is empty or of another type, has a URL of an unknown
    scheme, or names a shard twice.
    """
    sources = [source] if isinstance(source, (str, PathLike)) else source
    # sets and iterators are refused: their order, and with it the sample ids, may differ between processes
    if not isinstance(sources, Sequence) or isinstance(sources, (bytes, bytearray)):
        raise ConfigError(f"shards must be {_KINDS}; found {redacted(repr(source))} ({type(source).__name__})")
    if not sources:
        raise ConfigError(f"shards must be {_KINDS}; found an empty list")
    names = [_name(item) for item in sources]
    shards = [shard.absolute() for name in names for shard in _expand(name, cache_dir, progress)]
    if len(set(shards)) < len(shards):
        twice = next(shard for i, shard in enumerate(shards) if shard in shards[:i])
        raise ConfigError(f"each shard must be named once; found {twice} twice in {redacted(repr(source))}")
    return tuple(shards)


def _name(item: object) -> str:
    name = os.fspath(item) if isinstance(item, (str, PathLike)) else item
    if not isinstance(name, str):
        raise ConfigError(f"shards must be {_KINDS}; found {item!r} ({type(item).__name__})")
    if not name:  # Path("") is the current folder
        raise ConfigError(f"shards must be {_KINDS}; found an empty string. The current folder is '.'")
    return name


def _expand(item: str, cache_dir: str | PathLike[str] | None, progress: bool) -> list[Path]:
    _refuse_pipe(item, item)
    if Path(item).is_file():  # checked first, as file names may contain braces and brackets
        return [Path(item)]
    if Path(item).is_dir():
        return _matches(os.path.join(escape(item), "*.tar"), item)
    try:
        names = list(braceexpand(item))
    except ValueError as error:
        message = f"{item!r} is not a brace pattern like train-{{000000..001281}}.tar: {error}"
        raise ConfigError(redacted(message)) from None  # the cause has the URL, which may have a password
    for name in names:
        _refuse_pipe(name, item)
    if scheme := _SCHEME.match(item):
        return _download(names, scheme[1].lower(), cache_dir, progress)
    return _local(names, item)


def _refuse_pipe(name: str, item: str) -> None:
    if name.lower().startswith("pipe:"):
        raise ConfigError(f"{redacted(repr(item))}: pipe: URLs run shell commands and are refused; give files or URLs")


def _local(names: list[str], item: str) -> list[Path]:
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        if any(wild in name for wild in "*?["):
            found += _matches(name, item)
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            missing.append(name)
    if missing:
        subject = f"{len(missing)} of {len(names)} shards of {item!r} are" if len(names) > 1 else "shard is"
        more = ", ..." if len(missing) > 3 else ""
        raise ShardError(f"{subject} missing: {', '.join(missing[:3])}{more} (looked in {Path.cwd()})")
    return found


def _matches(pattern: str, item: str) -> list[Path]:
    paths = sorted(glob(pattern, recursive=True))
    files = [path for path in paths if os.path.isfile(path)]
    tars = [Path(path) for path in files if path.endswith(".tar")]
    no_files = set(paths).difference(files)
    if broken := sorted(path for path in no_files if path.endswith(".tar") and not os.path.isdir(path)):
        one = len(broken) == 1
        what = "shard is a broken link or not a regular file" if one else "shards are broken links or not regular files"
        raise ShardError(f"{len(broken)} {what}: {', '.join(broken[:3])}")
    if tars:
        return tars
    others, advice = files, ""
    if os.path.isdir(item):
        if folders := _folders_with_tars(item):
            raise ShardError(
                f"no shards: required *.tar files at {item!r} (in {Path.cwd()}), found none there but some in "
                f"{', '.join(map(repr, folders))}; give one of these"
            )
        others = glob(os.path.join(escape(item), "*"))
        if os.path.exists(os.path.join(item, RUN)):
            advice = ". `multimix-pipe pack` was run there, and no shard of it is left; run it again"
        elif _holds_images(item):
            pack = f"multimix-pipe pack {shlex.quote(item)} OUT"
            advice = f". It holds images: make shards of them with {pack}, and open OUT"
    what = "folder" if all(map(os.path.isdir, others)) else "other file"
    found = f"found {counted(len(others), what)}, such as {min(others)}" if others else "found nothing"
    raise ShardError(f"no shards: required *.tar files at {item!r} (in {Path.cwd()}), {found}{advice}")


def _holds_images(folder: str) -> bool:
    """Look at some files of a folder, of its folders and of theirs."""
    for depth in ("*.*", "*/*.*", "*/*/*.*"):
        some = islice(iglob(os.path.join(escape(folder), depth)), _MAX_FILES_SEARCHED)
        if any((guess_type(path)[0] or "").startswith("image/") for path in some):
            return True
    return False


def _folders_with_tars(folder: str) -> list[str]:
    folders = sorted(glob(os.path.join(escape(folder), "*", "")))[:_MAX_FOLDERS_SEARCHED]
    return [path.rstrip(os.sep) for path in folders if glob(os.path.join(escape(path), "*.tar"))]


def _download(names: list[str], scheme: str, cache_dir: str | PathLike[str] | None, progress: bool) -> list[Path]:
    if scheme in ("file", "local"):
        raise ConfigError(f"{redacted(repr(names[0]))}: give the path, without {scheme}://")
    if cache_dir is None:
        raise ConfigError(
            f"{redacted(repr(names[0]))}: shards of a URL are downloaded; set cache_dir= to a folder for them"
        )
    from multimix_pipe.shards.storage import fetch_remote  # only here: it imports fsspec

    return fetch_remote(names, cache_dir, progress=progress)


def distinct_names(shards: Sequence[Path]) -> tuple[str, ...]:
    """Return the base name of each shard, with as many folders before it as it takes to make all names distinct."""
    names = [shard.name for shard in shards]
    parts = 1
    while len(set(names)) < len(names):
        parts += 1
        counts = Counter(names)
        names = [
            "/".join(shard.parts[-parts:]) if counts[name] > 1 else name
            for name, shard in zip(names, shards, strict=True)
        ]
    return tuple(names)
