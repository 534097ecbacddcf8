"""Mixing: its settings, its plan, and one file per method. NumPy only; the blends are in `runtime/kernels` and `dali/stage`."""

from multimix_pipe.mixing.method import Field, Method
from multimix_pipe.mixing.methods import METHODS
from multimix_pipe.mixing.multimix import LamPer, MultiMix, Pairing, Sampling
from multimix_pipe.mixing.plan import MixPlan

__all__ = ["METHODS", "Field", "LamPer", "Method", "MixPlan", "MultiMix", "Pairing", "Sampling"]
