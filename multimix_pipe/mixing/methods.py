"""The mixing methods by name. To add one, write its file next to this one and add a line here."""

from __future__ import annotations

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
