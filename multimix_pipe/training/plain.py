"""The batch before the mixing, which methods at the model start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import MixPlan
from multimix_pipe.plan import StepPlan
from multimix_pipe.plan.seeding import Stream, draw_words, integers

if TYPE_CHECKING:
    from typing_extensions import Self


class PlainBatch(Protocol):
    """A `Batch` of `open_loader(expand=False)`: B plain images, their labels, and the plan of their mixing."""

    def __replace__(self, **changes: Any) -> Self:
        """Return the batch with some of its parts changed."""

    @property
    def images(self) -> Tensor:
        """(B, ...)."""

    @property
    def targets(self) -> Any:
        """The labels once more."""

    @property
    def labels(self) -> Tensor:
        """(B,) int64, or (B, C) float32 with several labels per sample."""

    @property
    def plan(self) -> StepPlan | MixPlan:
        """How to mix the B images, and the position of the batch."""


def check_plain(batch: PlainBatch, name: str) -> StepPlan:
    """Return the plan of `batch`. Raises ConfigError unless it is a batch of plain images that `name` can mix."""
    if not all(hasattr(batch, part) for part in ("images", "targets", "labels", "plan")):
        raise ConfigError(f"{name} takes a Batch of open_loader(..., expand=False); found {type(batch).__name__}")
    plan = batch.plan
    # with several labels per sample, plain targets and those mixed with K = 1 look alike
    plain = batch.targets is batch.labels or (
        isinstance(batch.targets, Tensor) and not batch.targets.is_floating_point()
    )
    if isinstance(plan, StepPlan) and plan.crops_each:
        raise ConfigError(
            f'{name} mixes one crop of each image, crops="same"; found crops="each", which open_loader mixes without expand=False'
        )
    if not isinstance(plan, StepPlan) or len(batch.images) != len(plan) or not plain:
        raise ConfigError(
            f"{name} takes a batch before its mixing, with one image for each pair of the plan; found {len(batch.images)} "
            f"images and {plan.mix!r}. Pass expand=False to open_loader"
        )
    if len(plan) and not 0 <= plan.partner.min() <= plan.partner.max() < len(plan):
        raise ConfigError(f"{name} takes whole batches: partners may lie in any chunk; found a chunk of Batch.chunks")
    others = sorted(set(plan.method.tolist()) - {"mixup"})
    if others:
        raise ConfigError(
            f'{name} mixes by the K weights of each pair and needs a loader with MultiMix(method="mixup"); '
            f"found method {', '.join(others)}"
        )
    return plan


def draw_choice(options: int, stream: Stream, seed: int, plan: StepPlan) -> int:
    """Draw a number in [0, options) for a step: the same in every process, because it is keyed by the step's first position."""
    return int(integers(draw_words(seed, stream, plan.epoch, plan.step_start, 1, 1)[0], options)[0])


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of DistributedDataParallel and torch.compile."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or is_compiled_wrapper(model):
        model = model.get_submodule("_orig_mod" if is_compiled_wrapper(model) else "module")
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each of its modules back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Return whether `module` is what torch.compile returns for a module. Importing its class would take seconds."""
    return "_orig_mod" in module._modules


def is_compiled(model: nn.Module) -> bool:
    """Return whether the whole of `model` was compiled, inside or outside DistributedDataParallel."""
    while True:
        if is_compiled_wrapper(model) or getattr(model, "_compiled_call_impl", None) is not None:
            return True
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            return False
        model = model.module


def interpolate(values: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Return `w * x + (1 - w) * x'` as rows (B*K, ...) of the type and memory format of `values` (B, ...).

    `partner` is (B,) or (B, K) and `weight` float32 (B, K). The arithmetic is in float32 (float64 for float64 values), and its
    gradient flows into `values`.
    """
    with torch.autocast(values.device.type, enabled=False):
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        w = weight.reshape(*weight.shape, *[1] * (values.ndim - 1)).to(exact.dtype)
        other = exact[partner].reshape(len(values), -1, *values.shape[1:])
        mixed = w * exact[:, None] + (1 - w) * other
        return mixed.flatten(0, 1).to(values.dtype)


def check_logits(logits: object, rows: int, why: str = ", one row per image") -> Tensor:
    """Return what a model returned. Raises ConfigError, which may say `why`, unless it is a tensor of logits (rows, C)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"model must return logits ({rows}, C){why}; found {found}")
    return logits


def gradient(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Return the gradient by the images of `scale` times the summed cross-entropy of `forward(images)`, logits (B, C).

    It is the binary cross-entropy if samples have several labels, (B, C) floating point.
    """
    cross_entropy = F.binary_cross_entropy_with_logits if labels.is_floating_point() else F.cross_entropy
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        loss = scale * cross_entropy(forward(leaf).float(), labels.clone(), reduction="sum")
        (found,) = torch.autograd.grad(loss, leaf)
    return found


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ConfigError if labels on a CPU do not lie in [0, classes); those on a GPU are not read.

    Several labels per sample must be rows (B, classes).
    """
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise ConfigError(f"labels must be rows of the model's {classes} outputs; found {labels.shape[1]} classes")
        return
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(
            f"labels must lie in [0, {classes}), the number of the model's outputs; "
            f"found {int(labels.min())} .. {int(labels.max())}"
        )


def quoted(names: Sequence[str]) -> str:
    """Return names as a list for a message."""
    return ", ".join(map(repr, names))
