"""Who is compared: each contender is a module of this folder.

A contender has

    TITLE: str                          what a table calls it, under 40 characters
    NEEDS: tuple[str, ...]              names that must import, as ("timm", "torchvision"); a missing one gives a row that says so
    MIXES: tuple[int | None, ...] | None    the `Setting.k` that it can do; None: all, and no mixing
    def batches(setting: Setting) -> Iterator[object]
                                        endless, over epochs; each item is (images, targets) as Setting says
    def queued(setting: Setting) -> int     upper bound of the batches that stand ready while nobody asks for one;
                                        may be left out where 2 * threads + 4 is one

and imports what it needs inside of `batches`, so that its TITLE can be read where that is missing. It runs in a process of its
own, is set up at its best as its own documentation says, and raises what goes wrong.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from multimix_pipe.benchmark.setting import Setting

OURS = ("own_dali", "own_torch")
PEERS = (
    "dali_reader",
    "webdataset_tuned",
    "webdataset_torchvision",
    "webdataset_pillow",
    "timm_loader",
    "spdl_loader",
    "ffcv_loader",
)
CONTENDERS = {name: f"{__name__}.{name}" for name in (*OURS, *PEERS)}
"""Name -> module path."""

INSTALL = {
    "nvidia.dali": "pip install 'multimix-pipe[dali]'",
    "torchvision": "pip install 'multimix-pipe[bench]'",
    "timm": "pip install 'multimix-pipe[bench]'",
    "spdl": "pip install 'multimix-pipe[bench]'",
    "ffcv": "see bench/README.md: it needs libraries of the system",
}
"""Name that a contender needs -> how to get it."""


class Contender(Protocol):
    """What a module of this folder provides."""

    TITLE: str
    NEEDS: tuple[str, ...]
    MIXES: tuple[int | None, ...] | None

    def batches(self, setting: Setting) -> Iterator[object]:
        """Endless (images, targets)."""
        ...


def load_contender(path: str) -> Contender:
    """The contender in the module `path`, by its dotted name."""
    return cast("Contender", importlib.import_module(path))


def queued(contender: Contender, setting: Setting) -> int:
    """Batches to leave out at the start of a turn: they may have stood ready."""
    bound = getattr(contender, "queued", None)
    return 2 * setting.threads + 4 if bound is None else int(bound(setting))
