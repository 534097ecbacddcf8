"""The mixing methods by name. To add one, write its file next to this one and add a line here."""

from __future__ import annotations

from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing.cutmix import CutMix
from multimix_pipe.mixing.method import Method
from multimix_pipe.mixing.mixup import Mixup
from multimix_pipe.mixing.resizemix import ResizeMix
from multimix_pipe.mixing.smoothmix import SmoothMix

METHODS: dict[str, Method] = {
    "mixup": Mixup(),
    "cutmix": CutMix(),
    "resizemix": ResizeMix(),
    "smoothmix": SmoothMix(),
}

AT_THE_MODEL = {"manifold": "ManifoldMix(model, layers)", "puzzle": "PuzzleMix(model)"}
"""Methods that need the model, by the word that their names contain."""


def check_needs_no_model(name: object) -> None:
    """Raise ConfigError if `name` is that of a method that needs the model, which a loader does not have."""
    for word, instead in AT_THE_MODEL.items():
        if isinstance(name, str) and word in name.lower():
            raise ConfigError(
                f"MultiMix.method must be a method that needs no model; found {name!r}. Open the loader with "
                f'MultiMix(method="mixup") and expand=False, and pass its batches to {instead}'
            )
