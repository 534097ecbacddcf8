"""Evaluation: accuracy, calibration, corruptions and attacks of a trained model."""

from multimix_pipe.training.evaluation.attacks import FGSM, PGD, Attack
from multimix_pipe.training.evaluation.calibration import fit_temperature, metrics, row_statistics
from multimix_pipe.training.evaluation.corruptions import CORRUPTIONS
from multimix_pipe.training.evaluation.evaluate import evaluate

__all__ = ["CORRUPTIONS", "FGSM", "PGD", "Attack", "evaluate", "fit_temperature", "metrics", "row_statistics"]
