"""Training utilities: mixed targets, their loss, and accuracy."""

from multimix_pipe.training.losses import MultiMixLoss
from multimix_pipe.training.metrics import MixedAccuracy, mixed_accuracy
from multimix_pipe.training.targets import MixedTargets, Pairs, mix_targets, pair_targets

__all__ = ["MixedAccuracy", "MixedTargets", "MultiMixLoss", "Pairs", "mix_targets", "mixed_accuracy", "pair_targets"]
