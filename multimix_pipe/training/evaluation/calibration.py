"""Accuracy and calibration of logits, and temperature scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS = 15
LIMIT = 100.0
"""Temperatures are searched for between 1 / LIMIT and LIMIT."""

Float = NDArray[np.float64]


COLUMNS = ("top1", "top5", "nll", "brier", "confidence")
"""What `row_statistics` measures of each row. All metrics follow from these."""


def row_statistics(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return (N, 5) float64 on the CPU, the COLUMNS for each row of logits (N, C) / temperature and labels (N,) int64."""
    scaled = logits.double() / temperature
    # not the exp of log_softmax: the first exp of a process may have 11 correct bits on a CPU (pytorch/pytorch#188792)
    p = scaled.softmax(1)
    confidence, predicted = p.max(1)
    top5 = (logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]).any(1)
    nll = -scaled.log_softmax(1).gather(1, labels[:, None])[:, 0]
    brier = p.square().sum(1) - 2 * p.gather(1, labels[:, None])[:, 0] + 1
    columns = (predicted == labels, top5, nll, brier, confidence)
    return torch.stack([column.double() for column in columns], dim=1).cpu()


def metrics(rows: Tensor) -> dict[str, float]:
    """Return accuracy and calibration of rows (N, 5) of `row_statistics`, N >= 1.

        top1, top5      share of rows whose class is the most likely one, or among the five most likely
        nll             mean of -log p_y
        brier           mean of sum_c (p_c - [c = y])^2, in [0, 2]
        ece             sum over 15 bins of equal width of (share of rows) * |accuracy - mean confidence|
        adaptive_ece    the same over 15 bins of equally many rows
        signed_gap      mean confidence - accuracy: positive if the model is overconfident

    The confidence is the probability of the most likely class; a bin holds confidences in (low, high], so 1.0 is in the last one.
    Source: Guo et al. 2017, arXiv 1706.04599; adaptive bins: Nguyen and O'Connor 2015, arXiv 1508.05154.
    """
    top1, top5, nll, brier, confidence = rows.numpy().T
    return {
        "top1": float(top1.mean()),
        "top5": float(top5.mean()),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
        "ece": expected_error(*bin_means(equal_width(confidence), confidence, top1)),
        "adaptive_ece": expected_error(*bin_means(equal_mass(confidence, top1), confidence, top1)),
        "signed_gap": float(confidence.mean() - top1.mean()),
    }


def reliability(rows: Tensor) -> dict[str, list[Any]]:
    """Return the reliability diagram: for each of 15 bins of equal width, its rows, and their mean confidence and accuracy.

    Empty bins have None as confidence and accuracy.
    """
    top1, _, _, _, confidence = rows.numpy().T
    count, mean, accuracy = bin_means(equal_width(confidence), confidence, top1)
    filled = count > 0
    return {
        "count": [int(number) for number in count],
        "confidence": [float(value) if there else None for value, there in zip(mean, filled, strict=True)],
        "accuracy": [float(value) if there else None for value, there in zip(accuracy, filled, strict=True)],
    }


def equal_width(confidence: Float) -> NDArray[np.int64]:
    """Return the bin of each confidence: bin b holds (b / 15, (b + 1) / 15]."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def equal_mass(confidence: Float, correct: Float) -> NDArray[np.int64]:
    """Return bins whose numbers of rows differ by at most one. Rows of equal confidence are sorted by `correct`, not by place."""
    bins = np.empty(len(confidence), dtype=np.int64)
    bins[np.lexsort((correct, confidence))] = np.arange(len(confidence)) * BINS // max(len(confidence), 1)
    return bins


def bin_means(bins: NDArray[np.int64], confidence: Float, correct: Float) -> tuple[Float, Float, Float]:
    """Return (15,) each: the rows of every bin, their mean confidence, their accuracy; the last two are 0 in empty bins."""
    count = np.bincount(bins, minlength=BINS).astype(np.float64)
    sums = (np.bincount(bins, values, minlength=BINS) for values in (confidence, correct))
    mean, accuracy = (total / np.maximum(count, 1) for total in sums)
    return count, mean, accuracy


def expected_error(count: Float, mean: Float, accuracy: Float) -> float:
    """Return the mean over the rows of |accuracy - confidence| of their bins."""
    return float((count * np.abs(accuracy - mean)).sum() / max(count.sum(), 1))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T > 0 that minimises the mean of -log softmax(logits / T)_y, which is convex in 1 / T.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    exact = logits.double()

    def nll(log_inverse: float) -> float:
        return float(F.cross_entropy(exact * float(np.exp(log_inverse)), labels))

    limit = float(np.log(LIMIT))
    found = minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x))
