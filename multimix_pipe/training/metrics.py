"""Accuracy on mixed targets."""

from __future__ import annotations

import torch
from torch import Tensor

from multimix_pipe.training.targets import MixedTargets, target_form


def mixed_accuracy(logits: Tensor, targets: MixedTargets) -> Tensor:
    """Expected accuracy: the target's weight of the predicted class, averaged over the rows.

        rows    mean_i t[i, argmax_c logits[i]]
        pairs   the same, for target rows lam * onehot(y) + (1 - lam) * onehot(y')
        ids     plain accuracy

    Takes logits (N, C) and targets in any form that MultiMixLoss takes. Returns a 0-dim float32 tensor in [0, 1] on the
    logits' device, without synchronizing. The best possible value on mixed rows is the mean of max(lam, 1 - lam), not 1.

    >>> mixed_accuracy(torch.eye(3)[:2], torch.tensor([[0.75, 0.0, 0.25], [0.5, 0.5, 0.0]]))
    tensor(0.6250)
    """
    form = target_form(logits, targets)
    predicted = logits.argmax(1)
    if isinstance(targets, tuple):
        own, other, lam = targets
        predicted = predicted.view_as(lam)
        hits = lam * (predicted == own[:, None]) + (1 - lam) * (
            predicted == (other if other.ndim == 2 else other[:, None])
        )
    elif form == "rows":
        hits = targets.gather(1, predicted[:, None])
    else:
        hits = predicted == targets
    return hits.to(torch.float32).mean()
