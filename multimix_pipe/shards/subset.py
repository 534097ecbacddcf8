"""Subsets of a data set by key: `samples=` keeps, `exclude=` leaves out."""

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
    """Numbers of the samples to use, int64, in stored order.

    A key is a sample's `__key__`, or `shard.tar : key` where several shards have the same; a str or path names a text file of
    them, one a line. Raises ConfigError for a key in `samples` that no sample has, and where nothing is left.
    """
    kept = np.ones(len(index), dtype=np.bool_)
    wanted = None if samples is None else _read_keys("samples", samples)
    unwanted = None if exclude is None else _read_keys("exclude", exclude)
    numbers = _numbers_by_key(index, {*(wanted or ()), *(unwanted or ())})
    if wanted is not None:
        unknown = [key for key in wanted if key not in numbers]
        if unknown:
            raise ConfigError(
                f"samples must be keys of the data set; {len(unknown)} are not, the first: {unknown[0]!r}"
            )
        kept[:] = False
        kept[[number for key in wanted for number in numbers[key]]] = True
    if unwanted is not None:
        unknown = [key for key in unwanted if key not in numbers]
        if unknown:
            logger.warning("exclude: %d keys are not in this data set, the first: %r", len(unknown), unknown[0])
        kept[[number for key in unwanted for number in numbers.get(key, [])]] = False
    chosen = np.flatnonzero(kept).astype(np.int64)
    if not len(chosen):
        raise ConfigError(
            f"at least one sample is required; the shards hold {len(index)}, samples= and exclude= leave none"
        )
    return chosen


def _numbers_by_key(index: Index, wanted: set[str]) -> dict[str, list[int]]:
    """Numbers of the samples of each key or `shard.tar : key` of `wanted` that there is; one pass over the index."""
    if not wanted:
        return {}
    of_shards = _keys_of_shards(index, wanted)
    numbers: dict[str, list[int]] = {}
    for number, key in enumerate(index.each_key()):
        if key in wanted:
            numbers.setdefault(key, []).append(number)
        if key in of_shards and (name := index.full_key(number)) in wanted:
            numbers.setdefault(name, []).append(number)
    return numbers


def _keys_of_shards(index: Index, wanted: set[str]) -> set[str]:
    """What may be the key in the names `shard.tar : key` of `wanted`."""
    shards = {shard.name for shard in index.shards}
    keys: set[str] = set()
    for name in wanted:
        parts = str(name).split(" : ")  # either part may hold more of these
        keys.update(" : ".join(parts[i:]) for i in range(1, len(parts)) if " : ".join(parts[:i]) in shards)
    return keys


def _read_keys(argument: str, keys: Keys) -> list[str]:
    if not isinstance(keys, (str, PathLike)):
        listed = list(keys) if isinstance(keys, Iterable) else [keys]
        if not all(isinstance(key, str) for key in listed):
            raise ConfigError(f"{argument} must be a list of keys, each a str, or a text file of them; found {keys!r}")
        return listed
    path = Path(keys)
    if not path.is_file():
        raise ConfigError(
            f"{argument} must be a list of keys or a text file of them, one a line; there is no file {str(path)!r}"
        )
    # not splitlines() and strip(): a key may hold other white space, at its end too
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    return [key for key in (line.removesuffix("\r") for line in lines) if key]
