"""Selects the samples of a data set by key, for `samples=` and `exclude=`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import Keys
from multimix_pipe.errors import ConfigError
from multimix_pipe.shards.index import Index

logger = logging.getLogger("multimix_pipe")


def select(index: Index, samples: Keys | None, exclude: Keys | None) -> NDArray[np.int64]:
    """Return the ids of the samples to use, ascending: those of `samples` (None: all) without those of `exclude`.

    A key is a sample's `__key__`, or `shard.tar : key` if several shards have the same key (`folder/shard.tar : key` if several
    shards have that name); a str or path names a text file
    with one key per line. Raises ConfigError for a key in `samples` that no sample has, and if no sample is left.
    """
    kept = np.ones(len(index), dtype=np.bool_)
    wanted = None if samples is None else _read_keys("samples", samples)
    unwanted = None if exclude is None else _read_keys("exclude", exclude)
    ids = _ids_by_key(index, {*(wanted or ()), *(unwanted or ())})
    if wanted is not None:
        unknown = [key for key in wanted if key not in ids]
        if unknown:
            raise ConfigError(
                f"samples must be keys of the data set; {len(unknown)} are not, the first: {unknown[0]!r}"
            )
        kept[:] = False
        kept[[sample_id for key in wanted for sample_id in ids[key]]] = True
    if unwanted is not None:
        unknown = [key for key in unwanted if key not in ids]
        if unknown:
            keys = "1 key is" if len(unknown) == 1 else f"{len(unknown):,} keys are"
            logger.warning("exclude: %s not in this data set, the first: %r", keys, unknown[0])
        kept[[sample_id for key in unwanted for sample_id in ids.get(key, [])]] = False
    chosen = np.flatnonzero(kept).astype(np.int64)
    if not len(chosen):
        raise ConfigError(
            f"at least one sample is required; the shards hold {len(index)}, but samples= and exclude= leave none"
        )
    return chosen


def _ids_by_key(index: Index, wanted: set[str]) -> dict[str, list[int]]:
    """Map each key or `shard.tar : key` in `wanted` to its sample ids, in one pass over the index."""
    if not wanted:
        return {}
    candidates = _keys_in_full_keys(index, wanted)
    ids: dict[str, list[int]] = {}
    for sample_id, key in enumerate(index.each_key()):
        if key in wanted:
            ids.setdefault(key, []).append(sample_id)
        if key in candidates:
            plain = f"{index.shards[index.shard[sample_id]].name} : {key}"
            for name in {plain, index.full_key(sample_id)} & wanted:
                ids.setdefault(name, []).append(sample_id)
    return ids


def _keys_in_full_keys(index: Index, wanted: set[str]) -> set[str]:
    """Return all strings that may be the key in a `shard.tar : key` of `wanted`."""
    shards = {*index.shard_names, *(shard.name for shard in index.shards)}
    keys: set[str] = set()
    for name in wanted:
        parts = str(name).split(" : ")  # shard names and keys may both contain the separator
        keys.update(" : ".join(parts[i:]) for i in range(1, len(parts)) if " : ".join(parts[:i]) in shards)
    return keys


def _read_keys(argument: str, keys: Keys) -> list[str]:
    if not isinstance(keys, (str, PathLike)):
        listed = list(keys) if isinstance(keys, Iterable) else [keys]
        if not all(isinstance(key, str) for key in listed):
            raise ConfigError(f"{argument} must be a list of keys, each a str, or a text file of keys; found {keys!r}")
        return listed
    path = Path(keys)
    if not path.is_file():
        raise ConfigError(
            f"{argument} must be a list of keys or a text file with one key per line; there is no file {str(path)!r}"
        )
    # not splitlines() and strip(): a key may contain other white space, also at its end
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    return [key for key in (line.removesuffix("\r") for line in lines) if key]
