"""Targets of mixed samples, as dense rows or as pairs of labels with weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from multimix_pipe.errors import ConfigError
from multimix_pipe.runtime.tensors import per_member

Pairs = tuple[Tensor, Tensor, Tensor]
"""labels (B,) int64, partner labels (B,) or (B, K) int64, lam (B, K) float32; lam is the weight of `labels`. With several labels
per sample: labels (B, C) float32, partner labels (B, C) or (B, K, C), lam (B, K)."""

MixedTargets = Tensor | Pairs
"""Floating-point rows (B*K, C), or Pairs, or class ids (N,) int64 of plain batches."""

Form = Literal["rows", "pairs", "ids"]

_TOLERANCE = 0.05  # of the sum of a row in 16 bits
_SEVERAL = ". For several labels per sample see MultiMixLoss(multilabel=True) and docs/guides/multilabel.md"


def mix_targets(labels: Tensor, partner: Tensor, lam: Tensor, num_classes: int) -> Tensor:
    """Return dense target rows: row b*K + k is `lam[b, k] * onehot(y_b) + (1 - lam[b, k]) * onehot(y_partner[b])`.

    `labels` are (B,) int64, `partner` is (B,) or (B, K) int64 in [0, B), and `lam` is (B, K) float32 in [0, 1], all on one
    device. The result is (B*K, num_classes) float32 on that device; each row sums to 1 within 1 ulp, even if both labels
    are equal. Labels must lie in [0, num_classes); a check here would synchronize with the device. With several labels per
    sample, `labels` are rows (B, num_classes) float32, which stand for onehot(y).

    >>> mix_targets(torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([[1.0, 0.75], [0.5, 0.0]]), 3)
    tensor([[1.0000, 0.0000, 0.0000],
            [0.7500, 0.0000, 0.2500],
            [0.5000, 0.0000, 0.5000],
            [1.0000, 0.0000, 0.0000]])
    """
    own, other, weight = pair_targets(labels, partner, lam)
    b, k = weight.shape
    if labels.ndim == 2:
        if labels.shape[1] != num_classes:
            raise ConfigError(
                f"several labels must be rows (B, num_classes={num_classes}); found {tuple(labels.shape)}"
            )
        return _mix_rows(own, other, weight)
    if labels.device.type == "cpu":
        # np.zeros gets zeroed pages from the system; writing the zeros takes several times as long
        rows = torch.from_numpy(np.zeros((b, k, num_classes), dtype=np.float32))
    else:
        rows = torch.zeros(b, k, num_classes, dtype=torch.float32, device=labels.device)
    rows.scatter_add_(2, own[:, None, None].expand(b, k, 1), weight[..., None])
    rows.scatter_add_(2, per_member(other, weight)[..., None], 1 - weight[..., None])
    return rows.view(b * k, num_classes)


def _mix_rows(own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
    """Return rows (B*K, C): `lam * own + (1 - lam) * other`, of own (B, C), other (B, C) or (B, K, C), lam (B, K)."""
    other = other[:, None] if other.ndim == 2 else other
    return (lam[..., None] * own[:, None] + (1 - lam[..., None]) * other).flatten(0, 1)


def pair_targets(labels: Tensor, partner: Tensor, lam: Tensor) -> Pairs:
    """Return the same targets as `Pairs`: `(labels, labels[partner], lam)`."""
    fits = labels.ndim == 1 or (labels.ndim == 2 and labels.is_floating_point())
    fits = fits and lam.ndim == 2 and lam.shape[:1] == labels.shape[:1]
    if not fits or partner.shape not in (labels.shape[:1], lam.shape):
        raise ConfigError(
            "labels and partner must be (B,) and lam (B, K); "
            f"found {tuple(labels.shape)}, {tuple(partner.shape)}, {tuple(lam.shape)}. Only partner may be (B, K), too; "
            "several labels per sample are (B, C) float32"
        )
    if lam.dtype != torch.float32:
        raise ConfigError(f"lam must be float32, for images of any dtype; found {lam.dtype}")
    return labels, labels[partner], lam


def target_form(logits: Tensor, targets: MixedTargets) -> Form:
    """Return the form of `targets`. Reads only dtypes and shapes; raises ConfigError if they do not fit `logits` (N, C)."""
    if logits.ndim != 2:
        raise ConfigError(f"logits must be (N, C), one row per model input; found {tuple(logits.shape)}")
    if isinstance(targets, tuple):
        return _check_pairs(logits, targets)
    if targets.is_floating_point():
        if targets.requires_grad and not logits.requires_grad:
            raise ConfigError("the first argument must be the logits and the second the targets; found them swapped")
        if targets.shape != logits.shape:
            raise ConfigError(
                f"target rows must have the logits' shape {tuple(logits.shape)}; found {tuple(targets.shape)}: "
                "pass all B*K mixed images to the model, and set num_classes to the size of its output"
            )
        return "rows"
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:1]:
        fewer = targets.ndim == 1 and 0 < len(targets) < len(logits) and len(logits) % len(targets) == 0
        raise ConfigError(
            f"class ids must be int64 of shape ({logits.shape[0]},), one per row of the logits; "
            f"found {targets.dtype} of shape {tuple(targets.shape)}"
            + (". For a mixed batch, pass batch.targets; batch.labels has one label for each pair" if fewer else "")
        )
    return "ids"


def _check_pairs(logits: Tensor, targets: Pairs) -> Form:
    shapes = [tuple(part.shape) for part in targets]
    fits = len(shapes) == 3 and len(shapes[0]) == 1 and len(shapes[2]) == 2 and shapes[0] == shapes[2][:1]
    fits = fits and shapes[1] in (shapes[0], shapes[2])
    if not fits or targets[2].numel() != logits.shape[0]:
        raise ConfigError(
            f"target pairs must be labels (B,), partner labels (B,) or (B, K), lam (B, K) with B*K = {logits.shape[0]}, "
            f"the number of rows of the logits; found shapes {shapes}{_SEVERAL * (len(shapes[0]) == 2)}"
        )
    return "pairs"


def one_label_rows(rows: Tensor) -> Tensor:
    """Return target rows (N, C) that must sum to 1. On a CPU others are a ConfigError; elsewhere, without synchronizing, NaN.

    The sums may be off by what 16-bit rows lose.
    """
    sums = rows.sum(1, dtype=torch.promote_types(rows.dtype, torch.float32))
    wrong = ~((sums - 1).abs() < _TOLERANCE)
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return rows.masked_fill(wrong[:, None], torch.nan)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ConfigError(f"target rows must sum to 1; found {sums[first].item():.3g} in row {first}{_SEVERAL}")
    return rows


def several_label_rows(logits: Tensor, targets: MixedTargets) -> Tensor:
    """Return targets of several labels per sample as rows of the logits' shape (N, C).

    Raises ConfigError for class ids, and for rows or pairs of other shapes.
    """
    parts = targets if isinstance(targets, tuple) else (targets,)
    found = ", ".join(f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}" for part in parts)
    rows = targets
    if isinstance(targets, tuple):
        own, other, lam = targets
        fits = own.ndim == 2 and lam.ndim == 2 and len(own) == len(lam)
        fits = fits and other.shape in (own.shape, (*lam.shape, own.shape[1]))
        rows = _mix_rows(own, other, lam) if fits else own[:0]
    assert isinstance(rows, Tensor)
    if logits.ndim != 2 or not rows.is_floating_point() or rows.shape != logits.shape:
        raise ConfigError(
            f"with multilabel=True, targets must be floating-point rows of the logits' shape {tuple(logits.shape)}, or pairs "
            f"of (B, C), (B, C) or (B, K, C), and (B, K); found {found}"
            + ". For class ids, give multilabel=True to open_loader, too"
            * (not parts[0].is_floating_point())
        )
    return rows
