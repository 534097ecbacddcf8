"""Saves and restores a loader's state: its position in the run, and the settings that the position is valid for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

from multimix_pipe.errors import StateMismatchError
from multimix_pipe.plan import LANES
from multimix_pipe.runtime.context import LoaderContext

logger = logging.getLogger("multimix_pipe")

STATE_VERSION = 1


@dataclass(frozen=True)
class Position:
    """The position of a run, the same in every process."""

    epoch: int
    samples: int
    """Positions of the epoch that were handed out, over all processes."""
    steps: int
    """Steps of the epoch that each process has done."""
    order_batch_size: int
    """The batch size that the epoch's window order is built for."""


def save(context: LoaderContext, position: Position) -> dict[str, Any]:
    """Return the JSON-serialisable state of a loader at `position`."""
    return {"version": STATE_VERSION, **_identity(context), **asdict(position)}


def restore(context: LoaderContext, state: object, *, strict: bool) -> Position:
    """Return the position in a state made by `save`.

    Raises StateMismatchError if `state` is not a valid state, or belongs to another data set or configuration; with strict=False
    the latter is a warning.
    """
    if not isinstance(state, dict):
        raise StateMismatchError(f"state must be a dict from state_dict(); found {type(state).__name__}")
    if state.get("version") != STATE_VERSION:
        raise StateMismatchError(
            f"version: this loader reads states of version {STATE_VERSION}; found {state.get('version')!r}. Load the state with "
            "the version of multimix_pipe that saved it"
        )
    differing = [
        f"{name}: this loader has {mine!r}, the state has {theirs!r}"
        for name, mine, theirs in _differences(_identity(context), state)
    ]
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


def _identity(context: LoaderContext) -> dict[str, Any]:
    """Return the fields of a state that must agree with the loader."""
    c = context.config
    identity = {
        "data": context.index.fingerprint,
        "subset": context.plan.samples.digest,
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
    return cast("dict[str, Any]", json.loads(json.dumps(identity)))


def _differences(mine: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, mine, theirs) for each field that differs; fields of nested dicts are named `outer.inner`."""
    for name, value in mine.items():
        other = theirs.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
            yield from ((f"{name}.{inner}", *both) for inner, *both in _differences(value, other))
        elif other != value:
            yield name, value, other
