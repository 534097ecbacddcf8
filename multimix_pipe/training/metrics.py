"""Accuracy on mixed targets."""

from __future__ import annotations

import torch
from torch import Tensor

from multimix_pipe.runtime.tensors import per_member
from multimix_pipe.training.targets import MixedTargets, one_label_rows, target_form


def mixed_accuracy(logits: Tensor, targets: MixedTargets) -> Tensor:
    """Expected accuracy: the target's weight of the predicted class, averaged over the rows.

        rows    mean_i t[i, argmax_c logits[i]]
        pairs   the same, for target rows lam * onehot(y) + (1 - lam) * onehot(y')
        ids     plain accuracy

    Takes logits (N, C) and targets in any form that MultiMixLoss takes. Returns a 0-dim float32 tensor in [0, 1] on the
    logits' device, without synchronizing. The best possible value on mixed rows is the mean of max(lam, 1 - lam), not 1.
    Rows must sum to 1: others, such as those of several labels per sample, are a ConfigError on a CPU and give NaN elsewhere.

    >>> mixed_accuracy(torch.eye(3)[:2], torch.tensor([[0.75, 0.0, 0.25], [0.5, 0.5, 0.0]]))
    tensor(0.6250)
    """
    return _hits(logits, targets).mean()


class MixedAccuracy:
    """`mixed_accuracy` over all rows of several batches and, where torch.distributed is initialised, of all processes.

        accuracy = MixedAccuracy()
        for images, targets in loader:
            accuracy.update(model(images), targets)
        print(accuracy.compute().item())
        accuracy.reset()

    Accuracies of other libraries take soft targets for several labels per row, and so count most rows as right.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # hits, rows

    def update(self, logits: Tensor, targets: MixedTargets) -> None:
        """Add the rows of a batch; the arguments are those of `mixed_accuracy`. Does not synchronize."""
        hits = _hits(logits.detach(), targets)
        dtype = torch.float32 if hits.device.type == "mps" else torch.float64
        rows = torch.full((), hits.numel(), dtype=dtype, device=hits.device)
        sums = torch.stack([hits.sum(dtype=dtype), rows])
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self) -> Tensor:
        """Return the accuracy, a 0-dim float32 tensor: nan without any rows. Every process must call this."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        sums = self._sums
        if sums is None:
            on_gpu = distributed and "nccl" in torch.distributed.get_backend()
            sums = torch.zeros(2, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
        if distributed:
            sums = sums.clone()
            torch.distributed.all_reduce(sums)
        return (sums[0] / sums[1]).to(torch.float32)

    def reset(self) -> None:
        """Forget all rows."""
        self._sums = None


def _hits(logits: Tensor, targets: MixedTargets) -> Tensor:
    """Return the target's weight of the predicted class for each row, float32 of any shape."""
    form = target_form(logits, targets)
    predicted = logits.argmax(1)
    if isinstance(targets, tuple):
        own, other, lam = targets
        predicted = predicted.view_as(lam)
        hits = lam * (predicted == own[:, None]) + (1 - lam) * (predicted == per_member(other, lam))
    elif form == "rows":
        hits = one_label_rows(targets).gather(1, predicted[:, None])
    else:
        hits = predicted == targets
    return hits.to(torch.float32)
