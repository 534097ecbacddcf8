"""A training-data pipeline for image classification: WebDataset shards in, multi-mixed batches out.

Importing this package does not import torch, DALI or webdataset. Names that need them are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from multimix_pipe.config import EvalTransform, TrainTransform
from multimix_pipe.errors import (
    BadSampleError,
    ConfigError,
    MissingBackendError,
    MultiMixError,
    ShardError,
    StateMismatchError,
)
from multimix_pipe.mixing import CutMix, MixPlan, Mixup, MultiMix, ResizeMix, SmoothMix

if TYPE_CHECKING:
    from multimix_pipe.batch import Batch, apply_mix, mix_batch
    from multimix_pipe.loader import Loader, open_loader
    from multimix_pipe.training.evaluation import FGSM, PGD, evaluate
    from multimix_pipe.training.losses import MultiMixLoss
    from multimix_pipe.training.manifold import ManifoldMix
    from multimix_pipe.training.metrics import MixedAccuracy, mixed_accuracy
    from multimix_pipe.training.puzzle import PuzzleMix

__version__ = "0.1.0"

__all__ = [
    "FGSM",
    "PGD",
    "BadSampleError",
    "Batch",
    "ConfigError",
    "CutMix",
    "EvalTransform",
    "Loader",
    "ManifoldMix",
    "MissingBackendError",
    "MixPlan",
    "MixedAccuracy",
    "Mixup",
    "MultiMix",
    "MultiMixError",
    "MultiMixLoss",
    "PuzzleMix",
    "ResizeMix",
    "ShardError",
    "SmoothMix",
    "StateMismatchError",
    "TrainTransform",
    "apply_mix",
    "evaluate",
    "mix_batch",
    "mixed_accuracy",
    "open_loader",
]

_LAZY = {
    "Batch": "multimix_pipe.batch",
    "apply_mix": "multimix_pipe.batch",
    "mix_batch": "multimix_pipe.batch",
    "Loader": "multimix_pipe.loader",
    "open_loader": "multimix_pipe.loader",
    "FGSM": "multimix_pipe.training.evaluation",
    "PGD": "multimix_pipe.training.evaluation",
    "evaluate": "multimix_pipe.training.evaluation",
    "MultiMixLoss": "multimix_pipe.training.losses",
    "MixedAccuracy": "multimix_pipe.training.metrics",
    "ManifoldMix": "multimix_pipe.training.manifold",
    "PuzzleMix": "multimix_pipe.training.puzzle",
    "mixed_accuracy": "multimix_pipe.training.metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
