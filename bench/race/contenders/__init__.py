"""The contenders. Each library has a module here that sets it up as well as its own documentation shows.

A function of that module takes a `Setting` and returns an endless iterator, over epochs, of the (images, targets) that `Setting`
describes. It runs in its own process and raises an exception if something goes wrong. To add a contender, write such a function
and add an entry to `CONTENDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from race.setting import Setting

INSTALL = {
    "nvidia.dali": "pip install 'multimix-pipe[dali]'",
    "torchvision": "pip install 'multimix-pipe[bench]'",
    "timm": "pip install 'multimix-pipe[bench]'",
    "spdl": "pip install 'multimix-pipe[bench]'",
    "ffcv": "see bench/README.md: it needs system libraries",
}
"""Required module -> how to install it."""


@dataclass(frozen=True)
class Contender:
    """One contender of the race."""

    title: str
    """Name in tables, at most 40 characters."""
    batches: str
    """The function that returns its batches, as "module:function"."""
    needs: tuple[str, ...] = ()
    """Required modules; if one is missing, the row says so."""
    mixes: tuple[int | None, ...] | None = None
    """The values of `Setting.k` that it supports; None: all."""
    first: int = 1
    """Number of batches to take before it is ready to be measured."""

    def load(self) -> Callable[[Setting], Iterator[object]]:
        """Import the function that `batches` names."""
        module, function = self.batches.split(":")
        loaded: Callable[[Setting], Iterator[object]] = getattr(import_module(module), function)
        return loaded


_HERE = "race.contenders"
_WEBDATASET = f"{_HERE}.webdataset_loaders"
OURS = ("own_dali", "own_torch")
CONTENDERS = {
    "own_dali": Contender("multimix_pipe, dali", f"{_HERE}.own:dali_batches", ("nvidia.dali",)),
    "own_torch": Contender("multimix_pipe, torch", f"{_HERE}.own:torch_batches"),
    "dali_reader": Contender(
        "DALI readers.webdataset, mixed in torch", f"{_HERE}.dali_reader:batches", ("nvidia.dali",)
    ),
    "webdataset_tuned": Contender(
        "DataLoader, webdataset, tuned", f"{_WEBDATASET}:tuned", ("webdataset", "torchvision")
    ),
    "webdataset_torchvision": Contender(
        "DataLoader, webdataset, torchvision", f"{_WEBDATASET}:with_torchvision", ("webdataset", "torchvision")
    ),
    "webdataset_pillow": Contender("DataLoader, webdataset, Pillow", f"{_WEBDATASET}:with_pillow", ("webdataset",)),
    "timm_loader": Contender(
        "timm create_loader and Mixup",
        f"{_HERE}.timm_loader:batches",
        ("timm", "torchvision", "webdataset"),
        mixes=(None, 1),
    ),
    "spdl_loader": Contender("SPDL pipeline, mixed in torch", f"{_HERE}.spdl_loader:batches", ("spdl",)),
    "ffcv_loader": Contender("FFCV, mixed in torch", f"{_HERE}.ffcv_loader:batches", ("ffcv",)),
}
