"""`Batch`, and the functions that make one from the tensors of any other loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


class Batch:
    """The images and targets of one step, which unpack as `images, targets = batch`.

    B samples, each paired with a partner from the batch, become B*K rows. Row b*K + k is member k of pair b: sample b with weight
    `plan.lam[b, k]` and its partner, sample `plan.partner[b]` (`[b, k]` with partners="each"), with the rest. A batch owns its
    memory and stays valid as long as you hold it or one of its tensors; it does not hold its loader. It has the length and the
    items of the pair (images, targets), and can be pickled.
    """

    __slots__ = ("__weakref__", "_keys", "chunk_weight", "images", "labels", "plan", "targets")

    images: Tensor
    """(B*K, C, H, W), normalised; (B, C, H, W) if nothing is mixed. With expand=False and crops="each" they are (B*K, C, H, W),
    too: row b*K + k is crop k of image b."""
    targets: Tensor | PairTargets
    """(B*K, num_classes) float32 rows that sum to 1; with multilabel=True they need not. With targets="pairs", a tuple of labels
    (B,), the partners' labels (B,), or (B, K) with partners="each", and lam (B, K). If nothing is mixed, the labels, one per
    image."""
    labels: Tensor
    """(B,) int64 class ids of the samples. With multilabel=True, (B, num_classes) float32 rows of 0 and 1, also in pairs."""
    plan: StepPlan | MixPlan
    """The decisions behind the batch, in NumPy arrays: its samples, crop windows and flips, and how they are mixed: `partner`
    (B,) or (B, K), `lam` (B, K), `method` (B,), `box` (B, K, 4). A `MixPlan` if made by `mix_batch` or `apply_mix`."""
    chunk_weight: float
    """The share of this chunk in the batch that `chunks` has split; 1.0 for a whole batch. Multiply the mean loss of a chunk by
    it before `backward`: the gradients then add up to that of the batch's mean loss, also for chunks of unequal sizes (not if the
    loss has class weights: a chunk's mean then depends on its classes)."""

    def __init__(
        self,
        images: Tensor,
        targets: Tensor | PairTargets,
        labels: Tensor,
        plan: StepPlan | MixPlan,
        keys: Sequence[str],
        chunk_weight: float = 1.0,
    ) -> None:
        self.images = images
        self.targets = targets
        self.labels = labels
        self.plan = plan
        self._keys = keys
        self.chunk_weight = chunk_weight

    @property
    def keys(self) -> list[str]:
        """The keys (`__key__`) of the B samples."""
        return list(self._keys)

    def __iter__(self) -> Iterator[Tensor | PairTargets]:
        return iter((self.images, self.targets))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor | PairTargets:
        return (self.images, self.targets)[index]

    def __repr__(self) -> str:
        targets = self.targets.shape if isinstance(self.targets, Tensor) else [part.shape for part in self.targets]
        shapes = [
            tuple(shape) if isinstance(shape, torch.Size) else [*map(tuple, shape)]
            for shape in (self.images.shape, targets)
        ]
        dtype = str(self.images.dtype).removeprefix("torch.")
        return f"Batch(images {shapes[0]} {dtype} on {self.images.device}, targets {shapes[1]}, {self.plan!r})"

    def __replace__(self, **changes: Any) -> Batch:
        """Return the batch with some of the constructor's arguments changed: `copy.replace(batch, images=...)` calls this."""
        names = [name for name in self.__slots__ if name.strip("_") != "weakref"]
        return Batch(**{name.strip("_"): getattr(self, name) for name in names} | changes)

    def __reduce__(self) -> tuple[type[Batch], tuple[object, ...]]:
        part = self._converted(_without_the_rest_of_its_storage)
        return Batch, (part.images, part.targets, part.labels, self.plan, self.keys, self.chunk_weight)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`; see `torch.Tensor.to`. A loader makes them on its `device=`."""
        target = torch.device(device)
        return self._converted(lambda tensor: tensor.to(target, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory; the batch itself if torch finds no CUDA GPU.

        Tensors on a device stay as they are.
        """
        if not torch.cuda.is_available():
            return self
        return self._converted(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def chunks(self, n: int) -> Iterator[Batch]:
        """Split the batch into n micro-batches of whole pairs, as views; their sizes differ by at most one pair.

        A batch of fewer than n pairs gives one chunk per pair. A chunk's `plan.partner` still refers to rows of the whole batch.

            for chunk in batch.chunks(4):
                loss = loss_function(model(chunk.images), chunk.targets)
                (loss * chunk.chunk_weight).backward()
        """
        check_int("n", n, 1)
        pairs = len(self.plan)
        k = len(self.images) // max(pairs, 1)
        parts = min(n, pairs)
        for part in range(parts):
            yield self._pairs(slice(part * pairs // parts, (part + 1) * pairs // parts), k)

    def _pairs(self, pairs: slice, k: int) -> Batch:
        rows, labels = slice(pairs.start * k, pairs.stop * k), self.labels[pairs]
        if self.targets is self.labels:
            targets: Tensor | PairTargets = labels
        elif isinstance(self.targets, Tensor):
            targets = self.targets[rows]
        else:
            own, other, lam = self.targets
            targets = own[pairs], other[pairs], lam[pairs]
        share = (pairs.stop - pairs.start) / len(self.plan)
        return Batch(
            self.images[rows],
            targets,
            labels,
            self.plan.rows(pairs),
            self._keys[pairs],
            self.chunk_weight * share,
        )

    def _converted(self, convert: Callable[[Tensor], Tensor]) -> Batch:
        images, labels = convert(self.images), convert(self.labels)
        if self.targets is self.labels:
            targets: Tensor | PairTargets = labels
        elif isinstance(self.targets, Tensor):
            targets = convert(self.targets)
        else:
            first, second, lam = map(convert, self.targets)
            targets = first, second, lam
        return Batch(images, targets, labels, self.plan, self._keys, self.chunk_weight)


def _without_the_rest_of_its_storage(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy if it is a part of a larger one, which pickle would write as a whole."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


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
    """Apply multi-mix to the tensors of any other loader.

    Args:
        images: (B, ...) of a floating or integer type, on any device.
        labels: (B,) int64 in [0, num_classes), on the images' device. Several labels per sample: (B, num_classes) float32.
        mix: the settings.
        num_classes: width of the target rows.
        step: a number >= 0 that is different in every call of a run, over all processes. The draws are keyed by (seed, step), so
            calls with the same number draw the same partners and weights.
        seed: 0 .. 2**64-1.
        axes: see `apply_mix`.

    Returns:
        A `Batch` with images (B*K, ...) of the images' type (float32 if that is an integer type), dense targets
        (B*K, num_classes), the `MixPlan` as its plan, and the row numbers "0" .. "B-1" as its keys.

    Raises:
        ConfigError: an argument is invalid, or the arguments do not fit together.

    >>> batch = mix_batch(torch.rand(8, 3, 4, 4), torch.arange(8), MultiMix(k=5), num_classes=10, step=0)
    >>> batch.images.shape, batch.targets.shape
    (torch.Size([40, 3, 4, 4]), torch.Size([40, 10]))
    """
    if not isinstance(mix, MultiMix):
        raise ConfigError(f"mix must be a MultiMix; found {mix!r}")
    if mix.crops != "same":
        raise ConfigError(
            f'mix_batch gets images that are cropped already and needs crops="same"; found crops={mix.crops!r}. '
            "Pass it to open_loader, or mix several crops of each image with apply_mix and MixPlan.of_crops"
        )
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("step", step, 0)
    if images.ndim < 1:
        raise ConfigError("images must be (B, ...); found a single number")
    size = Layout.of(images.shape[1:], axes)
    plan = draw_mixing(mix, seed, step, 0, len(images), (size.height, size.width))
    return apply_mix(images, labels, plan, num_classes=num_classes, axes=axes)


def apply_mix(
    images: Tensor, labels: Tensor, plan: MixPlan, *, num_classes: int, axes: Sequence[int] | None = None
) -> Batch:
    """Execute a mixing plan on tensors. `mix_batch` draws a plan and calls this; use it directly to choose the weights yourself.

    Args:
        images: (B, ...) of a floating or integer type, on any device.
        labels: (B,) int64 in [0, num_classes), on the images' device. Several labels per sample: (B, num_classes) float32.
        plan: the mixing of B pairs; its weights need not be ordered.
        num_classes: width of the target rows.
        axes: the axes that boxes span, counted without the batch axis: one axis, or two adjacent ones. Default: the last two.

    Returns:
        A `Batch`, as `mix_batch` does. Row b*K + k is member k of pair b.

    Raises:
        ConfigError: an argument is invalid, or the arguments do not fit together.

    >>> import numpy as np
    >>> plan = MixPlan(partner=np.array([1, 0]), lam=np.array([[1.0, 0.25], [1.0, 0.5]], dtype=np.float32))
    >>> apply_mix(torch.tensor([0.0, 8.0]), torch.tensor([0, 1]), plan, num_classes=2).images
    tensor([0., 6., 8., 4.])
    """
    _check_mix_arguments(images, labels, plan, num_classes)
    layout = Layout.of(images.shape[1:], axes)
    plan.check_size((layout.height, layout.width))
    images = images.detach()
    dtype = images.dtype if images.is_floating_point() else torch.float32
    channels_last = axes is None and images.ndim == 4 and not images.is_contiguous()
    channels_last = channels_last and images.is_contiguous(memory_format=torch.channels_last)
    if channels_last:  # the result keeps that memory format
        images, axes = images.permute(0, 2, 3, 1), (0, 1)
    mix = MixTensors.of(plan, images.device)
    out = images.new_empty((len(plan), plan.k, *images.shape[1:]), dtype=dtype)
    mixed = blend(images, mix, out, Layout.of(images.shape[1:], axes)).flatten(0, 1)
    targets = mix_targets(labels, mix.partner, mix.lam, num_classes)
    keys = [str(row) for row in range(len(plan))]
    return Batch(mixed.permute(0, 3, 1, 2) if channels_last else mixed, targets, labels, plan, keys)


def _check_mix_arguments(images: Tensor, labels: Tensor, plan: MixPlan, num_classes: int) -> None:
    check_int("num_classes", num_classes, 1)
    several = labels.ndim == 2
    shape = (*images.shape[:1], num_classes) if several else images.shape[:1]
    if images.ndim < 1 or labels.shape != shape or labels.dtype != (torch.float32 if several else torch.int64):
        raise ConfigError(
            f"images must be (B, ...) and labels int64 (B,), or float32 (B, num_classes={num_classes}) if samples have several; "
            f"found images {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}"
        )
    # labels on a GPU are not checked: that would wait for the device
    read = labels.device.type == "cpu" and len(labels) and not several
    if read and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ConfigError(
            f"labels must lie in [0, num_classes={num_classes}); found {int(labels.min())} .. {int(labels.max())}"
        )
    if type(plan) is not MixPlan:
        raise ConfigError(
            f"apply_mix executes a MixPlan, such as the batch.plan.mix of a loader; found {type(plan).__name__}"
        )
    rows = len(images)
    if len(plan) != rows or (rows and not 0 <= plan.partner.min() <= plan.partner.max() < rows):
        hint = '. If these are K crops of each image (crops="each"), pass plan.of_crops()'
        raise ConfigError(
            f"plan must hold {rows} pairs, one per image, with partners in [0, {rows}); found {plan!r}"
            f"{hint if len(plan) * plan.k == rows else ''}"
        )
