"""Compares the loaders of all processes: data, settings, position, and who takes which batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

import torch.distributed as dist

from multimix_pipe.errors import ConfigError
from multimix_pipe.loader.position import Position
from multimix_pipe.loader.state import differences, identity
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.shards.launcher import World

_TOLD_APART = "Give all processes the same shards and the same arguments"


def check_ranks(context: LoaderContext, world: World, position: Position) -> None:
    """Raise ConfigError, in all processes, if the loaders of the processes of torch.distributed do not fit together."""
    if not (dist.is_available() and dist.is_initialized()):
        if world.size > 1:
            raise ConfigError(
                f"check_ranks needs torch.distributed to compare {world.size} processes; it is not initialised. "
                "Call torch.distributed.init_process_group first"
            )
        return
    config = context.config
    settings = {
        name: getattr(config, name) for name in ("num_classes", "label", "multilabel", "targets", "expand", "dtype")
    }
    mine = {
        **identity(context),
        **settings,
        "world_size": world.size,
        "position": asdict(position),
    }
    everyone = _gather((mine, world.rank, context.classes))
    for process, (theirs, *_) in enumerate(everyone):
        if found := list(differences(everyone[0][0], theirs, "process 0", f"process {process}")):
            # all processes found the same, so all of them take part in this exchange
            first = _first_shard_that_differs(context, process) if found[0].startswith("data: ") else ""
            raise ConfigError(f"all processes must have the same loader; {'; '.join(found)}{first}. {_TOLD_APART}")
    _check_names([names for *_, names in everyone])
    ranks = Counter(rank for _, rank, _ in everyone)
    if len(ranks) != world.size or len(set(ranks.values())) > 1:
        raise ConfigError(
            f"each rank in [0, {world.size}) must be that of equally many processes; found ranks "
            f"{[rank for _, rank, _ in everyone]}. Pass each group of processes that shares a model replica a rank of its own"
        )


def _check_names(names: Sequence[tuple[str, ...] | None]) -> None:
    """Raise ConfigError if the class names of two processes that know them differ."""
    known = [(process, found) for process, found in enumerate(names) if found is not None]
    for process, found in known[1:]:
        first, wanted = known[0]
        for number, (name, other) in enumerate(zip_longest(wanted, found)):
            if name != other:
                raise ConfigError(
                    f"all processes must have the same class names; class {number} is {name!r} in process {first} and "
                    f"{other!r} in process {process}. {_TOLD_APART}"
                )


def _gather(mine: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _first_shard_that_differs(context: LoaderContext, process: int) -> str:
    """Say in which shard the data of `process` first differ from those of process 0."""
    index = context.index
    counts = Counter(index.shard.tolist())
    everyone = _gather([(shard.name, counts[place]) for place, shard in enumerate(index.shards)])
    for own, other in zip_longest(everyone[0], everyone[process]):
        if own != other:
            texts = ["no further shard" if one is None else f"{one[0]} with {one[1]} samples" for one in (own, other)]
            return f"; the first difference: process 0 has {texts[0]}, process {process} has {texts[1]}"
    return "; the shards have the same names and numbers of samples, and other contents"
