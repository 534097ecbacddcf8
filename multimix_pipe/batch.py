"""What a loader hands out, and the same for tensors of other loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from multimix_pipe.config import MultiMix, check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.plan import StepPlan, draw_mixing
from multimix_pipe.runtime.kernels.blend import blend
from multimix_pipe.runtime.transfer import to_device
from multimix_pipe.training.targets import mix_targets

PairTargets = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """B pairs as B*K mixed rows; unpacks to `(images, targets)`. Row b*K + k is pair b at weight `plan.lam[b, k]`.

    It stays valid for as long as it, or a tensor of it, is referenced.
    """

    images: Tensor
    """(B*K, C, H, W), normalised; (B, C, H, W) where nothing is mixed."""
    targets: Tensor | PairTargets
    """(B*K, num_classes) float32 rows that sum to 1; or with targets="pairs" (labels (B,), partners' labels (B,), lam (B, K));
    or int64 (B,) class ids where nothing is mixed."""
    labels: Tensor
    """(B,) int64 class ids of the samples."""
    plan: StepPlan
    """Which samples, windows and flips these are, with `partner` (B,) and `lam` (B, K), NumPy arrays."""
    _keys: Callable[[], list[str]] = field(repr=False)

    @property
    def keys(self) -> list[str]:
        """`__key__` of the B samples."""
        return self._keys()

    def __iter__(self) -> Iterator[Tensor | PairTargets]:
        return iter((self.images, self.targets))

    def chunks(self, n: int) -> Iterator[Batch]:
        """Split into n micro-batches of whole pairs (fewer where there are fewer pairs), as views; sizes differ by one at most.

        The chunks' `plan.partner` still numbers rows of the whole batch.
        """
        check_int("n", n, 1)
        pairs = len(self.plan)
        k = len(self.images) // max(pairs, 1)
        parts = min(n, pairs)
        for part in range(parts):
            yield self._pairs(slice(part * pairs // parts, (part + 1) * pairs // parts), k)

    def _pairs(self, pairs: slice, k: int) -> Batch:
        rows = slice(pairs.start * k, pairs.stop * k)
        if isinstance(self.targets, Tensor):
            targets: Tensor | PairTargets = self.targets[rows]
        else:
            labels, partner_labels, lam = self.targets
            targets = (labels[pairs], partner_labels[pairs], lam[pairs])
        return replace(
            self,
            images=self.images[rows],
            targets=targets,
            labels=self.labels[pairs],
            plan=self.plan.rows(pairs),
            _keys=lambda: self.keys[pairs],
        )


def mix_batch(
    images: Tensor, labels: Tensor, mix: MultiMix, *, num_classes: int, seed: int = 0, step: int = 0
) -> Batch:
    """Multi-mix on tensors of anybody's own loader.

    images (B, ...) of a floating or integer type, labels (B,) int64 in [0, num_classes), on one device. `step` must be another
    number at each call (count steps over the whole run, and over processes): it is what the draws are keyed by, with `seed`.
    The result's images are (B*K, ...) of the images' type, float32 where that is an integer type; its keys are the rows' numbers,
    its plan has no windows (zeros).

    >>> batch = mix_batch(torch.rand(8, 3, 4, 4), torch.arange(8), MultiMix(k=5), num_classes=10, step=0)
    >>> batch.images.shape, batch.targets.shape
    (torch.Size([40, 3, 4, 4]), torch.Size([40, 10]))
    """
    if not isinstance(mix, MultiMix):
        raise ConfigError(f"mix must be a MultiMix; found {mix!r}")
    check_int("num_classes", num_classes, 1)
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("step", step, 0)
    if images.ndim < 1 or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ConfigError(
            "images must be (B, ...) and labels int64 (B,); "
            f"found images {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ConfigError(
            f"labels must lie in [0, num_classes={num_classes}); found {int(labels.min())} .. {int(labels.max())}"
        )
    rows, images = len(images), images.detach()
    partner, lam = draw_mixing(mix, seed, step, 0, rows)
    numbers = np.arange(rows, dtype=np.int64)
    no_window, no_flip = np.zeros((rows, 4), dtype=np.float32), np.zeros(rows, dtype=np.bool_)
    plan = StepPlan(step, 0, numbers, no_window, no_flip, partner, lam)
    dtype = images.dtype if images.is_floating_point() else torch.float32
    device_partner, device_lam = to_device(partner, images.device), to_device(lam, images.device)
    out = images.new_empty((rows, mix.k, *images.shape[1:]), dtype=dtype)
    mixed = blend(images.float(), device_partner, device_lam, out).flatten(0, 1)
    targets = mix_targets(labels, device_partner, device_lam, num_classes)
    return Batch(mixed, targets, labels, plan, lambda: [str(number) for number in numbers])
