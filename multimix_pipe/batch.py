"""What a loader hands out, and the same for tensors of other loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from multimix_pipe.config import check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import MixPlan, MultiMix
from multimix_pipe.plan import StepPlan, draw_mixing
from multimix_pipe.runtime.kernels import Layout, blend
from multimix_pipe.runtime.tensors import MixTensors
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
    plan: StepPlan | MixPlan
    """Which samples, windows and flips these are, and how they are mixed, in NumPy arrays: `partner` (B,), `lam` (B, K), `method`
    (B,), `box` (B, K, 4). From `mix_batch` and `apply_mix` the `MixPlan` alone."""
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
    images: Tensor,
    labels: Tensor,
    mix: MultiMix,
    *,
    num_classes: int,
    step: int,
    seed: int = 0,
    axes: Sequence[int] | None = None,
) -> Batch:
    """Multi-mix on the tensors of any other loader.

    Args:
        images: (B, ...) of a floating or integer type.
        labels: (B,) int64 in [0, num_classes), on the images' device.
        mix: how to mix.
        num_classes: width of the target rows.
        step: the draws are keyed by (seed, step): pass a number that differs at each call, counted over the whole run and over
            processes. A loop that passes the same number mixes alike for ever.
        seed: 0 .. 2**64-1.
        axes: see `apply_mix`.

    Returns:
        A batch whose images are (B*K, ...) of the images' type, float32 where that is an integer type; its keys are the rows'
        numbers, and its plan is the `MixPlan`.

    >>> batch = mix_batch(torch.rand(8, 3, 4, 4), torch.arange(8), MultiMix(k=5), num_classes=10, step=0)
    >>> batch.images.shape, batch.targets.shape
    (torch.Size([40, 3, 4, 4]), torch.Size([40, 10]))
    """
    if not isinstance(mix, MultiMix):
        raise ConfigError(f"mix must be a MultiMix; found {mix!r}")
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("step", step, 0)
    size = Layout.of(images.shape[1:], axes)
    plan = draw_mixing(mix, seed, step, 0, len(images), (size.height, size.width))
    return apply_mix(images, labels, plan, num_classes=num_classes, axes=axes)


def apply_mix(
    images: Tensor, labels: Tensor, plan: MixPlan, *, num_classes: int, axes: Sequence[int] | None = None
) -> Batch:
    """Execute any mixing plan on tensors: what `mix_batch` is made of, for checks and studies that choose weights themselves.

    Args:
        images: (B, ...) of a floating or integer type.
        labels: (B,) int64 in [0, num_classes), on the images' device.
        plan: of B pairs; its weights need not be ordered.
        num_classes: width of the target rows.
        axes: the axes of an image (counted without the batch's) that boxes lie in: one, or two neighbours. None: the last two.

    Returns:
        As `mix_batch`. Row b*K + k is member k of pair b.

    Raises ConfigError where the arguments do not fit each other.
    """
    check_int("num_classes", num_classes, 1)
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
    if len(plan) != rows or (rows and not 0 <= plan.partner.min() <= plan.partner.max() < rows):
        raise ConfigError(f"the plan must be one of {rows} pairs with partners in [0, {rows}); found {plan!r}")
    dtype = images.dtype if images.is_floating_point() else torch.float32
    channels_last = axes is None and images.ndim == 4 and not images.is_contiguous()
    channels_last = channels_last and images.is_contiguous(memory_format=torch.channels_last)
    if channels_last:  # the result keeps that memory format
        images, axes = images.permute(0, 2, 3, 1), (0, 1)
    mix = MixTensors.of(plan, images.device)
    out = images.new_empty((rows, plan.k, *images.shape[1:]), dtype=dtype)
    mixed = blend(images.float(), mix, out, Layout.of(images.shape[1:], axes)).flatten(0, 1)
    targets = mix_targets(labels, mix.partner, mix.lam, num_classes)
    keys = [str(number) for number in range(rows)]
    return Batch(mixed.permute(0, 3, 1, 2) if channels_last else mixed, targets, labels, plan, lambda: keys)
