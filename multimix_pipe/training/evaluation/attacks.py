"""FGSM and PGD: the largest loss within a distance from each image, in pixel space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimix_pipe.config import check_bool, check_int, check_number
from multimix_pipe.training.plain import gradient

Forward = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) in [0, 1] to logits (B, classes)."""


@dataclass(frozen=True)
class FGSM:
    """One step of `eps` along the sign of the gradient: x + eps * sign(dloss/dx), clamped to [0, 1].

    Source: Goodfellow et al. 2015, arXiv 1412.6572.
    """

    eps: float = 4 / 255
    """Largest change of a value, for pixels in [0, 1]."""

    def __post_init__(self) -> None:
        check_number("FGSM.eps", self.eps, 0.0, 1.0)

    @property
    def name(self) -> str:
        """The attack with its strength, for a table."""
        return f"fgsm {_in_255ths(self.eps)}"

    def __call__(self, forward: Forward, images: Tensor, labels: Tensor, samples: Sequence[int]) -> Tensor:
        """Return the attacked images; see `PGD`."""
        return (images + self.eps * gradient(forward, images, labels).sign()).clamp(0, 1)


@dataclass(frozen=True)
class PGD:
    """`steps` steps of `step` along the sign of the gradient, each projected onto [x - eps, x + eps] and [0, 1].

    Source: Madry et al. 2018, arXiv 1706.06083.
    """

    eps: float = 4 / 255
    """Largest change of a value, for pixels in [0, 1]."""
    step: float = 1 / 255
    """Change of a value in one step."""
    steps: int = 10
    random_start: bool = True
    """Whether to start at a random point within `eps`."""
    seed: int = 0
    """Of the random start, which is keyed by the sample."""

    def __post_init__(self) -> None:
        check_number("PGD.eps", self.eps, 0.0, 1.0)
        check_number("PGD.step", self.step, 0.0, 1.0)
        check_int("PGD.steps", self.steps, 1)
        check_bool("PGD.random_start", self.random_start)
        check_int("PGD.seed", self.seed, 0, 2**64 - 1)

    @property
    def name(self) -> str:
        """The attack with its strength, for a table."""
        return f"pgd-{self.steps} {_in_255ths(self.eps)}"

    def __call__(self, forward: Forward, images: Tensor, labels: Tensor, samples: Sequence[int]) -> Tensor:
        """Return the attacked images.

        Args:
            forward: maps images in [0, 1] to logits.
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64.
            samples: a number for each image, which the random start is keyed by.
        """
        attacked = images
        if self.random_start:
            draws = [
                np.random.default_rng((self.seed, int(sample))).random(images.shape[1:], np.float32)
                for sample in samples
            ]
            start = torch.from_numpy(np.stack(draws)).to(images)
            attacked = (images + self.eps * (2 * start - 1)).clamp(0, 1)
        for _ in range(self.steps):
            moved = attacked + self.step * gradient(forward, attacked, labels).sign()
            attacked = torch.minimum(torch.maximum(moved, images - self.eps), images + self.eps).clamp(0, 1)
        return attacked


Attack = FGSM | PGD


def _in_255ths(eps: float) -> str:
    return f"eps={round(eps * 255, 3):g}/255"
