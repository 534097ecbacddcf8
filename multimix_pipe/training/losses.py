"""Cross-entropy over K-fold mixed targets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimix_pipe.config import check_bool, check_choice, check_number
from multimix_pipe.errors import ConfigError
from multimix_pipe.runtime.tensors import per_member
from multimix_pipe.training.targets import MixedTargets, Pairs, one_label_rows, several_label_rows, target_form

Reduction = Literal["mean", "sum", "none"]


class MultiMixLoss(nn.Module):
    """Cross-entropy of mixed samples. The mean runs over all B*K rows, that is, over all K interpolations of each pair.

    With target rows t, log-probabilities log p, class weights w (1 by default), label smoothing e and C classes:

        "none"   loss_i = sum_c w_c * ((1 - e) * t_ic + e / C) * -log p_ic
        "sum"    sum_i loss_i
        "mean"   sum_i loss_i / sum_i sum_c w_c * t_ic

    This extends the formula that `F.cross_entropy` uses for class ids to soft targets: one-hot rows give the same loss,
    and scaling `weight` does not change the mean. `F.cross_entropy` itself divides the loss of soft targets by N instead of
    their weight, so with class weights its losses of mixed and of plain batches are on different scales.

    `forward` takes logits (N, C) and targets in any form that a Batch has. The loss does not depend on the form:

        rows    (B*K, C) floating point, each row summing to 1
        pairs   (labels (B,), partner labels (B,) or (B, K), lam (B, K)); no dense rows are built
        ids     (N,) int64 class ids of plain batches, by F.cross_entropy: one loss serves training and evaluation

    The loss of 16-bit logits is computed in float32. The loss applies the smoothing: pass targets without smoothing.

    With multilabel=True, for loaders opened so, it is the binary cross-entropy, with p = sigmoid(logit) for each class:

        "none"   loss_i = sum_c w_c * (-s_ic * log p_ic - (1 - s_ic) * log(1 - p_ic)) / sum_c w_c,   s = (1 - e) * t + e / 2
        "sum"    sum_i loss_i
        "mean"   sum_i loss_i / (B*K)

    Targets are rows in [0, 1] of the logits' shape, which need not sum to 1, or the pairs of such a loader. Without weights and
    smoothing, the mean is `F.binary_cross_entropy_with_logits`. Use that function itself if you need its `pos_weight`.

    >>> loss = MultiMixLoss()
    >>> loss(torch.zeros(4, 3), (torch.tensor([0, 2]), torch.tensor([2, 0]), torch.tensor([[0.9, 0.4], [0.7, 0.1]])))
    tensor(1.0986)
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        multilabel: bool = False,
    ) -> None:
        """`weight`: (C,) floating point, finite and >= 0. `label_smoothing`: in [0, 1].

        `multilabel`: whether samples may have several labels.
        """
        super().__init__()
        check_number("label_smoothing", label_smoothing, 0.0, 1.0)
        check_choice("reduction", reduction, get_args(Reduction))
        check_bool("multilabel", multilabel)
        if weight is not None:
            _check_weight(weight)
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.multilabel = multilabel

    def forward(self, logits: Tensor, targets: MixedTargets) -> Tensor:
        """Return the loss of logits (N, C): 0-dim, or (N,) with reduction="none".

        Raises ConfigError if the shapes do not match, or if rows on a CPU do not sum to 1; elsewhere their loss is NaN.
        """
        if self.multilabel:
            targets = several_label_rows(logits, targets)
        form = target_form(logits, targets)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = None if self.weight is None else self.weight.to(logits)
        if weight is not None and weight.shape[0] != logits.shape[1]:
            raise ConfigError(f"weight must hold one number for each of {logits.shape[1]} classes; found {len(weight)}")
        if self.multilabel:
            assert isinstance(targets, Tensor)
            return self._binary(logits, targets, weight)
        if form == "ids":
            assert isinstance(targets, Tensor)
            return F.cross_entropy(
                logits, targets, weight=weight, reduction=self.reduction, label_smoothing=self.label_smoothing
            )
        weighted = logits.log_softmax(1).neg()
        if weight is not None:
            weighted = weighted * weight
        loss, mass = (
            _pairs(weighted, targets, weight) if isinstance(targets, tuple) else _rows(weighted, targets, weight)
        )
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * weighted.mean(1)
        if self.reduction == "none":
            return loss
        return loss.sum() / mass if self.reduction == "mean" else loss.sum()

    def _binary(self, logits: Tensor, rows: Tensor, weight: Tensor | None) -> Tensor:
        rows = (1 - self.label_smoothing) * rows.to(logits.dtype) + self.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(logits, rows, reduction="none")
        loss = loss.mean(1) if weight is None else (loss * weight).sum(1) / weight.sum()
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        weight = None if self.weight is None else f"({len(self.weight)} classes)"
        text = f"weight={weight}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        return text + ", multilabel=True" * self.multilabel


def _rows(weighted: Tensor, rows: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Return the unsmoothed loss (N,) of dense rows and the mean's divisor; `weighted` is `w_c * -log p_ic`."""
    rows = one_label_rows(rows).to(weighted.dtype)
    return (rows * weighted).sum(1), len(rows) if weight is None else (rows * weight).sum()


def _pairs(weighted: Tensor, pairs: Pairs, weight: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Like `_rows`, but read only the two classes of each pair."""
    own, other, lam = pairs
    lam = lam.to(weighted.dtype)
    at_own = weighted.gather(1, own.repeat_interleave(lam.shape[1])[:, None]).view_as(lam)
    other = per_member(other, lam)
    at_other = weighted.gather(1, other.reshape(-1, 1)).view_as(lam)
    loss = (lam * at_own + (1 - lam) * at_other).flatten()
    if weight is None:
        return loss, len(loss)
    return loss, (lam * weight[own][:, None] + (1 - lam) * weight[other]).sum()


def _check_weight(weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise ConfigError(f"weight must be a tensor (C,) with one number per class; found {weight!r}")
    if weight.ndim != 1 or not weight.is_floating_point():
        raise ConfigError(
            f"weight must be a floating-point tensor (C,); found {weight.dtype} of shape {tuple(weight.shape)}"
        )
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ConfigError(
            f"weight must hold finite numbers >= 0; found {weight.min().item():g}..{weight.max().item():g}"
        )
