"""Mixing: its settings, its plan, and one file per method. NumPy only; the blends are in `runtime/kernels` and `dali/stage`."""

from multimix_pipe.mixing.cutmix import CutMix
from multimix_pipe.mixing.method import Field, Members, Method
from multimix_pipe.mixing.methods import METHODS
from multimix_pipe.mixing.mixup import Mixup
from multimix_pipe.mixing.multimix import Alpha, Crops, LamPer, MultiMix, Pairing, Partners, Sampling
from multimix_pipe.mixing.plan import MixPlan
from multimix_pipe.mixing.resizemix import ResizeMix
from multimix_pipe.mixing.schedule import MixSchedule, fields_of
from multimix_pipe.mixing.smoothmix import SmoothMix

__all__ = [
    "METHODS",
    "Alpha",
    "Crops",
    "CutMix",
    "Field",
    "LamPer",
    "Members",
    "Method",
    "MixPlan",
    "MixSchedule",
    "Mixup",
    "MultiMix",
    "Pairing",
    "Partners",
    "ResizeMix",
    "Sampling",
    "SmoothMix",
    "fields_of",
]
