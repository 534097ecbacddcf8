"""Saves and restores a loader's state: its position in the run, and the settings that the position is valid for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from multimix_pipe.errors import StateMismatchError, counted
from multimix_pipe.loader.position import Position
from multimix_pipe.plan import LANES
from multimix_pipe.runtime.context import LoaderContext

logger = logging.getLogger("multimix_pipe")

STATE_VERSION = 2
"""Version 1 had another order of samples and another state at an epoch's end."""

_ABSENT = {"partners": "same", "crops": "same"}
"""Settings of mixing that states from before they existed lack, with what holds for those."""

_COUNTS = {
    "data": ("{samples} in {shards}", ", with other file names, images or labels"),
    "subset": ("{samples} in use", ", other ones or with other weights"),
}
"""How to describe fields that hold digests: what they count, and what differs if the counts agree."""


def save(context: LoaderContext, position: Position) -> dict[str, Any]:
    """Return the JSON-serialisable state of a loader at `position`."""
    return {"version": STATE_VERSION, **identity(context), **asdict(position)}


def restore(context: LoaderContext, state: object, *, strict: bool) -> Position:
    """Return the position in a state made by `save`.

    Raises StateMismatchError if `state` is not a valid state, or belongs to another data set or configuration; with strict=False
    the latter is a warning.
    """
    if not isinstance(state, dict):
        raise StateMismatchError(f"state must be a dict from state_dict(); found {type(state).__name__}")
    if "version" not in state:
        raise StateMismatchError(
            f"state must be what loader.state_dict() returned; found a dict of {', '.join(map(repr, state)) or 'nothing'}. "
            "Of a checkpoint pass the part that holds it"
        )
    if state["version"] != STATE_VERSION:
        raise StateMismatchError(
            f"version: this loader reads states of version {STATE_VERSION}; found {state['version']!r}, of which epochs have "
            "another order. Use the multimix_pipe that saved it, or begin an epoch with set_epoch"
        )
    mine, theirs = identity(context), _with_absent(state.get("mix"))
    state = {**state, "mix": theirs}
    if mine["mix"] is None and theirs is None:
        del mine["batch_size"]  # batches of another size show the same samples in the same crops
    differing = list(differences(mine, state, "this loader", "the state"))
    if differing and strict:
        hint = "Open the loader with the state's settings, or resume anyway with strict=False"
        raise StateMismatchError(f"{'; '.join(differing)}. {hint}")
    numbers = [state.get(name) for name in ("epoch", "samples", "steps", "order_batch_size")]
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or not numbers[-1]:
        raise StateMismatchError(
            f"epoch, samples and steps must be ints >= 0 and order_batch_size >= 1; found {numbers}"
        )
    if differing:
        logger.warning("loaded a state that differs from this loader. %s", "; ".join(differing))
    return Position(*cast("list[int]", numbers))


def _with_absent(mix: object) -> object:
    """Return the settings of mixing in a state, or those of each epoch, with the settings that it lacks."""
    if not isinstance(mix, dict):
        return mix
    return {**_ABSENT, **mix} if "k" in mix else {epoch: _with_absent(settings) for epoch, settings in mix.items()}


def identity(context: LoaderContext) -> dict[str, Any]:
    """Return the fields of a state that must agree with the loader."""
    c, index = context.config, context.index
    fields = {
        "data": {"samples": len(index), "shards": len(index.shards), "fingerprint": index.fingerprint},
        "subset": {"samples": len(context.plan.samples), "digest": context.plan.samples.digest},
        "seed": c.seed,
        "batch_size": c.batch_size,
        "shuffle": c.shuffle,
        "last_batch": c.last_batch,
        "exif": c.exif,
        "on_bad_sample": c.on_bad_sample,
        "mix": None if c.mix is None else c.mix.settings(),
        "transform": {"kind": type(c.transform).__name__, **asdict(c.transform), "size": c.transform.height_width},
        "lanes": LANES,
    }
    return cast("dict[str, Any]", json.loads(json.dumps(fields)))


def differences(mine: dict[str, Any], theirs: dict[str, Any], me: str, them: str) -> Iterator[str]:
    """Describe each field in which two identities differ; fields of nested dicts are named `outer.inner`."""
    for name, value in mine.items():
        other = theirs.get(name)
        if value == other:
            continue
        if name in _COUNTS:
            unit, other_contents = _COUNTS[name]
            counts = [_counts(data, unit) for data in (value, other)]
            yield f"{name}: {me} has {counts[0]}, {them} has {counts[1]}{other_contents if counts[0] == counts[1] else ''}"
        elif isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
            yield from (f"{name}.{text}" for text in differences(value, other, me, them))
        else:
            why = " (partners come from the same batch, so they change with it; samples and crops do not)"
            yield f"{name}: {me} has {value!r}, {them} has {other!r}{why if name == 'batch_size' else ''}"


def _counts(data: object, unit: str) -> str:
    if not isinstance(data, dict):
        return repr(data)
    found = {name: data.get(name) for name in ("samples", "shards")}
    return unit.format(
        **{name: counted(n, name[:-1]) if isinstance(n, int) else f"{n!r} {name}" for name, n in found.items()}
    )
