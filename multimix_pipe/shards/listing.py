"""Which shards a user means: paths, globs, brace patterns, folders and http(s) URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from glob import glob
from os import PathLike
from pathlib import Path

from braceexpand import braceexpand

from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards.cache import fetch_remote

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")


def list_shards(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    cache_dir: str | PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> tuple[Path, ...]:
    """Absolute paths of the shards that `source` names, in its order; within a glob or a folder by name.

    `source` is a path, a glob, a brace pattern (`train-{000000..001281}.tar`), a folder (its *.tar), an http(s) URL
    (brace patterns too; downloaded into `cache_dir`), or a list of those. Globs and folders take *.tar files only.

    Raises ShardError where something named is not there, ConfigError for other URLs and for a shard named twice.
    """
    sources = [source] if isinstance(source, (str, PathLike)) else list(source)
    if not sources:
        raise ConfigError("source must name at least one shard; found an empty list")
    shards = [shard.absolute() for item in sources for shard in _expand(os.fspath(item), cache_dir, progress)]
    if len(set(shards)) < len(shards):
        twice = next(shard for i, shard in enumerate(shards) if shard in shards[:i])
        raise ConfigError(f"each shard must be named once; found {twice} twice in {source!r}")
    return tuple(shards)


def _expand(item: str, cache_dir: str | PathLike[str] | None, progress: bool) -> list[Path]:
    if item.startswith("pipe:"):
        raise ConfigError(f"{item!r}: pipe: URLs run shell commands and are refused; name files or http(s) URLs")
    if Path(item).is_file():  # before patterns, so that a name with braces or brackets is taken as it is
        return [Path(item)]
    if Path(item).is_dir():
        return _matches(os.path.join(item.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]"), "*.tar"), item)
    try:
        names = list(braceexpand(item))
    except ValueError as error:
        raise ConfigError(f"{item!r} is no brace pattern like train-{{000000..001281}}.tar: {error}") from error
    if scheme := _SCHEME.match(item):
        return [_download(name, scheme[1].lower(), cache_dir, progress) for name in names]
    return _local(names, item)


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
        of = f"{len(missing)} of {len(names)} shards of {item!r} are" if len(names) > 1 else "shard is"
        more = ", ..." if len(missing) > 3 else ""
        raise ShardError(f"{of} missing: {', '.join(missing[:3])}{more} (looked in {Path.cwd()})")
    return found


def _matches(pattern: str, item: str) -> list[Path]:
    paths = sorted(path for path in glob(pattern, recursive=True) if os.path.isfile(path))
    tars = [Path(path) for path in paths if path.endswith(".tar")]
    if tars:
        return tars
    others = glob(os.path.join(item, "*")) if os.path.isdir(item) else paths
    found = f"found {len(others)} other files, like {min(others)}" if others else "found nothing"
    raise ShardError(f"no shards: required *.tar files at {item!r} (in {Path.cwd()}), {found}")


def _download(url: str, scheme: str, cache_dir: str | PathLike[str] | None, progress: bool) -> Path:
    if scheme not in ("http", "https"):
        raise ConfigError(f"{url!r}: {scheme}:// is not read; copy or mount the shards, and name the paths")
    if cache_dir is None:
        raise ConfigError(f"{url!r}: shards from http(s) are downloaded; give cache_dir=, a folder to keep them in")
    return fetch_remote(url, cache_dir, progress=progress)
