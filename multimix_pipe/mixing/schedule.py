"""`MixSchedule`: other settings of multi-mix from some epochs on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing.method import Field
from multimix_pipe.mixing.multimix import MultiMix


@dataclass(frozen=True)
class MixSchedule:
    """Settings by epoch, made from `mix={0: MultiMix(...), 280: None}`: each holds from its epoch on."""

    changes: tuple[tuple[int, MultiMix | None], ...]
    """(first epoch, settings), by epoch; the first one is epoch 0, and at least one mixes."""

    @classmethod
    def of(cls, mapping: Mapping[Any, Any]) -> MixSchedule:
        """Check a user's mapping. Raises ConfigError."""
        if any(isinstance(key, str) for key in mapping):
            raise ConfigError(
                f"mix as a mapping has epochs as keys, as {{0: MultiMix(...), 280: None}}; found {dict(mapping)!r}. "
                "For probabilities of methods use MultiMix(method={...})"
            )
        for epoch, mix in mapping.items():
            check_int("an epoch in mix", epoch, 0)
            if mix is not None and not isinstance(mix, MultiMix):
                raise ConfigError(f"mix[{epoch}] must be a MultiMix or None; found {mix!r}")
        if 0 not in mapping or not any(mapping.values()):
            raise ConfigError(
                "mix by epoch must have epoch 0 and at least one MultiMix, as {0: MultiMix(...), 280: None}; found "
                f"{dict(mapping)!r}. Use mix=None to train without mixing"
            )
        return cls(tuple((int(epoch), mapping[epoch]) for epoch in sorted(mapping)))

    def at(self, epoch: int) -> MultiMix | None:
        """Return the settings of an epoch."""
        return self.changes[bisect_right([first for first, _ in self.changes], epoch) - 1][1]

    def __repr__(self) -> str:
        return repr(dict(self.changes))

    @property
    def mixes(self) -> tuple[MultiMix, ...]:
        """All settings that mix."""
        return tuple(mix for _, mix in self.changes if mix is not None)

    @property
    def k(self) -> int:
        """The largest K of any epoch."""
        return max(mix.k for mix in self.mixes)

    def settings(self) -> dict[str, Any]:
        """Return all settings as a JSON-serialisable dict, for states."""
        return {str(epoch): None if mix is None else mix.settings() for epoch, mix in self.changes}


def fields_of(mix: MultiMix | MixSchedule) -> set[Field]:
    """Return the kinds of weight fields that plans of `mix` may have."""
    return {choice.method.field for settings in mix.mixes for choice in settings.choices}
