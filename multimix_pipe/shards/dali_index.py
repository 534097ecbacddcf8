"""Index files for DALI's own `fn.readers.webdataset`, as its `wds2idx` writes them (version 1.2)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from multimix_pipe.errors import ShardError
from multimix_pipe.shards.tar import READ_BUFFER, Member, read_members, split_name

_SPACE = re.compile(r"\s")


def write_dali_indexes(shards: Sequence[Path], folder: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Write `x.idx` for each shard `x.tar`, beside it or in `folder`, and return their paths in the order of `shards`.

    >>> paths = list_shards("train-{000000..000004}.tar")
    >>> fn.readers.webdataset(paths=list(map(str, paths)), index_paths=list(map(str, write_dali_indexes(paths))), ...)
    """
    indexes = [(shard.parent if folder is None else Path(folder)) / (shard.stem + ".idx") for shard in shards]
    if len(set(indexes)) < len(indexes):
        raise ShardError(f"two shards have the same name and would share an index in {folder}; give no folder")
    for shard, index in zip(shards, indexes, strict=True):
        _write_one(shard, index)
    return tuple(indexes)


def _write_one(shard: Path, index: Path) -> None:
    samples: dict[str, list[str]] = {}
    partial = index.with_name(f".{index.name}.{os.getpid()}.tmp")
    try:
        with open(shard, "rb", buffering=READ_BUFFER) as file:
            for member in read_members(file, shard):
                if (names := split_name(member.name)) is not None:
                    samples.setdefault(names[0], []).append(_entry(names[1], member))
        lines = [f"v1.2 {len(samples)}", *(" ".join(entries) for entries in samples.values())]
        index.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
        os.replace(partial, index)
    except OSError as error:
        raise ShardError(f"the DALI index {index} of {shard} cannot be written: {error}") from error


def _entry(extension: str, member: Member) -> str:
    # fields are parted by spaces; DALI takes names from here for messages alone
    return f"{_SPACE.sub('_', extension)} {member.offset} {member.size} {_SPACE.sub('_', member.name)}"
