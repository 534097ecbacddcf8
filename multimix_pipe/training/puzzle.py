"""PuzzleMix: which of two images each block shows is decided by what a network looks at, with K nested masks for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from multimix_pipe.config import IMAGENET_STD, check_bool, check_int, check_number
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import MixPlan
from multimix_pipe.mixing.method import Size
from multimix_pipe.plan.seeding import Stream
from multimix_pipe.runtime.tensors import upload
from multimix_pipe.training.blocks import (
    block_of,
    border_differences,
    cut_part,
    padding,
    share_of_pixels,
    squared_distances,
    sum_over_blocks,
    unary_parts,
)
from multimix_pipe.training.graph_cut import nested_cuts
from multimix_pipe.training.plain import (
    PlainBatch,
    bare,
    check_labels,
    check_logits,
    check_plain,
    draw_choice,
    evaluating,
    gradient,
)
from multimix_pipe.training.targets import mix_targets

AnyBatch = TypeVar("AnyBatch", bound=PlainBatch)

SMALLEST = 1e-8
"""Weights are kept this far from 0 and 1 in logarithms."""


@dataclass(frozen=True, eq=False, repr=False)
class PuzzlePlan(MixPlan):
    """What PuzzleMix made of a `MixPlan`: `lam` is the share of the pixels that show x. `apply_mix` cannot execute it again."""

    shown: NDArray[np.int64] = None  # type: ignore[assignment]
    """(B, n, n) in how many of the K members each block shows x: member k shows it there if k < shown[b, row, column]."""

    def weights(self, size: Size) -> NDArray[np.float32]:
        """Return the masks for images of `size` (H, W), 1 where x is shown: float32 (B, K, H, W)."""
        rows, columns = (block_of(side, self.shown.shape[1]) for side in size)
        shown = self.shown[:, rows][:, :, columns]
        return (np.arange(self.k)[:, None, None] < shown[:, None]).astype(np.float32)

    def rows(self, rows: slice) -> PuzzlePlan:
        """Return the plan of some consecutive pairs. Its `partner` still refers to rows of the whole batch."""
        return PuzzlePlan(self.partner[rows], self.lam[rows], self.method[rows], self.box[rows], shown=self.shown[rows])

    def __repr__(self) -> str:
        n = self.shown.shape[1]
        return f"PuzzlePlan({len(self)} pairs, K={self.k}, {n}x{n} blocks)"


class PuzzleMix:
    """Mixes plain batches by masks that keep the salient blocks of both images.

    The saliency of a pixel is the norm over the channels of the gradient of the loss, which is the binary cross-entropy if the
    loader has multilabel=True. One backward pass of the plain batch serves all K members. With s and s' the saliency of the
    blocks of x and x', each summing to 1, member k shows x in the blocks Z that minimise

        sum_{i in Z} s'_i + sum_{i not in Z} s_i - eta/n^2 * sum_i log(lam_k if i in Z else 1 - lam_k) + sum_{i, j} w_ij [cut]

    by an exact graph cut. The masks of a pair nest: the larger lam_k, the more blocks show x. The label is the share of the
    pixels that do.

        mixing = PuzzleMix(model)
        for plain in open_loader(..., mix=MultiMix(k=5), expand=False):
            images, targets = mixing(plain)  # (B*K, C, H, W), (B*K, num_classes)
            loss = MultiMixLoss()(model(images), targets)

    Source: Kim, Choo and Song 2020, arXiv 2009.06962; K members per pair: Shen et al. 2024, arXiv 2406.01417.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: int | Sequence[int] = (2, 4, 8, 16),
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        transport: bool = False,
        move_cost: float = 0.8,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
    ) -> None:
        """The defaults are those that the paper's code uses for CIFAR-100, except for `transport`.

        Args:
            model: maps images (B, C, H, W) to logits (B, num_classes). It may be inside DistributedDataParallel or compiled.
            blocks: n, the blocks along each side, in [2, 64]. Of several numbers, one is drawn for each step.
            beta: how much a border between blocks of x and of x' costs, >= 0.
            gamma: how much more it costs where the pixels on both sides differ, >= 0.
            eta: how strongly lam_k pulls the share of x, >= 0.
            transport: whether salient blocks may move to places that show their image. Needs sides that are multiples of n.
            move_cost: what it costs to move a block across the image, relative to the whole saliency.
            std: the standard deviations that the images were divided by, one per channel.
            seed: the seed of the draws of n, 0 .. 2**64-1.

        Raises:
            ConfigError: an argument is invalid.
        """
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module; found {type(model).__name__}")
        self.blocks = tuple(blocks) if isinstance(blocks, Sequence) else (blocks,)
        if not self.blocks:
            raise ConfigError("blocks must hold at least one number of blocks; found none")
        for n in self.blocks:
            check_int("blocks", n, 2, 64)
        for name, value in (("beta", beta), ("gamma", gamma), ("eta", eta), ("move_cost", move_cost)):
            check_number(name, value, 0.0, 100.0)
        check_bool("transport", transport)
        check_int("seed", seed, 0, 2**64 - 1)
        self.model, self.seed = model, seed
        self.beta, self.gamma, self.eta = beta, gamma, eta
        self.transport, self.move_cost, self.std = transport, move_cost, tuple(std)

    def __call__(self, batch: AnyBatch, *, saliency: Tensor | None = None, num_classes: int | None = None) -> AnyBatch:
        """Mix a batch of `open_loader(..., expand=False)`.

        Args:
            batch: B plain images (B, C, H, W), their labels, and the plan of their mixing.
            saliency: the gradient of the loss by the images, (B, C, H, W), or its size (B, H, W), if you have it from a pass of
                your own. Default: one pass of the model in eval mode, which changes no parameter, gradient or statistic.
            num_classes: width of the target rows, required with `saliency`. Default: the number of the model's logits.

        Returns:
            The batch with images (B*K, C, H, W), dense targets (B*K, num_classes), and a `PuzzlePlan` as `plan.mix`, whose `lam`
            is the share of pixels that show x.

        Raises:
            ConfigError: the batch is mixed already, or its size, channels or labels do not fit.
        """
        plan = check_plain(batch, "PuzzleMix")
        _check_nested(plan.mix)
        self._check_images(batch.images, saliency, num_classes)
        n = self.blocks[draw_choice(len(self.blocks), Stream.BLOCKS, self.seed, plan)]
        height, width = batch.images.shape[2:]
        if n > min(height, width) or (self.transport and (height % n or width % n)):
            fitting = "sides that are multiples of n, to move blocks" if self.transport else "at least n pixels a side"
            raise ConfigError(
                f"images must have {fitting}; found {height}x{width} pixels and n = {n} blocks; set blocks="
            )
        if saliency is None:
            saliency, num_classes = self._saliency(batch)
        else:
            assert num_classes is not None
            check_labels(batch.labels, num_classes)
        with torch.no_grad(), torch.autocast(batch.images.device.type, enabled=False):
            energies = self._energies(batch.images, plan.mix, saliency, n)
            shown = _cut(energies, plan.mix.lam)
            mixed = PuzzlePlan(plan.partner, share_of_pixels(shown, plan.mix.k, (height, width)), shown=shown)
            images = (
                self._transported(batch.images, mixed, energies.own) if self.transport else _masked(batch.images, mixed)
            )
            partner, lam = upload([mixed.partner, mixed.lam], batch.images.device)
            targets = mix_targets(batch.labels, partner, lam, num_classes)
        return batch.__replace__(images=images, targets=targets, plan=replace(plan, mix=mixed))

    def _check_images(self, images: Tensor, saliency: Tensor | None, num_classes: int | None) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise ConfigError(
                f"PuzzleMix takes floating-point images (B, C, H, W); found {images.dtype} {tuple(images.shape)}"
            )
        if images.shape[1] != len(self.std):
            raise ConfigError(
                f"std must hold one number per channel; found {len(self.std)} for {images.shape[1]} channels"
            )
        if saliency is None:
            return
        if saliency.shape not in (images.shape, (len(images), *images.shape[2:])):
            raise ConfigError(
                f"saliency must be (B, C, H, W) or (B, H, W), as the images {tuple(images.shape)}; found {tuple(saliency.shape)}"
            )
        if num_classes is None:
            raise ConfigError("saliency= needs num_classes=, the width of the target rows; found None")
        check_int("num_classes", num_classes, 1)

    def _saliency(self, batch: PlainBatch) -> tuple[Tensor, int]:
        """Return the gradient of the loss by the images, and the number of classes."""
        model = bare(self.model)  # DistributedDataParallel would wait for gradients of parameters
        classes = 0

        def forward(images: Tensor) -> Tensor:
            nonlocal classes
            logits = check_logits(model(images), len(images))
            classes = logits.shape[1]
            check_labels(batch.labels, classes)
            return logits

        with evaluating(model):
            # the factor keeps small gradients representable in float16; saliency is divided by its sum later
            return gradient(forward, batch.images, batch.labels, scale=128), classes

    def _energies(self, images: Tensor, mix: MixPlan, saliency: Tensor, n: int) -> Energies:
        """Return the terms of the pairs' energies, and the saliency of each image's blocks."""
        partner = torch.from_numpy(mix.partner).to(images.device)
        sides = border_differences(
            images.float() * images.new_tensor(self.std, dtype=torch.float32)[:, None, None], partner, n
        )
        size = saliency.float().square().mean(1).sqrt() if saliency.ndim == 4 else saliency.float().abs()
        own, down, right = (
            np.nan_to_num(part.cpu().numpy().astype(np.float64), posinf=0.0)
            for part in (sum_over_blocks(size, n), *sides)
        )
        total = own.sum((1, 2), keepdims=True)
        # where no gradient is left, all blocks are equally salient
        own = np.where(total > 0, own / np.where(total > 0, total, 1), 1 / n**2)
        border = self.beta / (16 * n)
        unary = own[mix.partner] - own
        for axis, phi in ((1, down), (2, right)):
            before, after = unary_parts(phi)
            unary += self.gamma * border * (np.pad(before, padding(axis, 0)) + np.pad(after, padding(axis, 1)))
        down, right = (np.maximum(0, border * (1 + self.gamma * cut_part(phi))) for phi in (down, right))
        lam = mix.lam.astype(np.float64).clip(SMALLEST, 1 - SMALLEST)
        prior = self.eta / n**2 * (np.log1p(-lam) - np.log(lam))
        return Energies(unary, prior, down, right, own)

    def _transported(self, images: Tensor, mixed: PuzzlePlan, own: NDArray[np.float64]) -> Tensor:
        """Return the mixed rows (B*K, C, H, W) with blocks moved to the places that show their image."""
        pairs, k, n = len(mixed), mixed.k, own.shape[1]
        shows_own = np.arange(k)[:, None] < mixed.shown.reshape(pairs, 1, -1)
        source = np.empty(shows_own.shape, dtype=np.int64)
        distance = self.move_cost * squared_distances(n)
        for pair in range(pairs):
            for image, shows in ((pair, shows_own[pair]), (mixed.partner[pair], ~shows_own[pair])):
                for member in range(k):
                    places = np.flatnonzero(shows[member])
                    _, moved = linear_sum_assignment(distance[places] - own[image].ravel())
                    source[pair, member, places] = image * n * n + moved
        channels, height, width = images.shape[1:]
        cut = images.reshape(pairs, channels, n, height // n, n, width // n).permute(0, 2, 4, 1, 3, 5)
        (index,) = upload([source.reshape(-1)], images.device)
        tiles = cut.reshape(pairs * n * n, channels, height // n, width // n)[index]
        rows = tiles.view(pairs * k, n, n, channels, height // n, width // n).permute(0, 3, 1, 4, 2, 5)
        whole = rows.reshape(pairs * k, channels, height, width)
        return whole.contiguous(memory_format=_memory_format(images))


class Energies(NamedTuple):
    """The terms of `nested_cuts`, and the saliency of the blocks."""

    unary: NDArray[np.float64]
    """(B, n, n)."""
    prior: NDArray[np.float64]
    """(B, K)."""
    down: NDArray[np.float64]
    """(B, n-1, n)."""
    right: NDArray[np.float64]
    """(B, n, n-1)."""
    own: NDArray[np.float64]
    """(B, n, n), summing to 1 for each image."""


def _cut(energies: Energies, lam: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (B, n, n) in how many members each block shows x. Weights of exactly 1 or 0 show one image alone."""
    return nested_cuts(*energies[:4], (lam == 1).sum(1), (lam > 0).sum(1))


def _check_nested(mix: MixPlan) -> None:
    if mix.partner.ndim != 1:
        raise ConfigError('PuzzleMix needs one partner for each pair, partners="same"; found a partner for each member')
    if (np.diff(mix.lam, axis=1) > 0).any():
        raise ConfigError("PuzzleMix needs weights that do not increase along k, as MultiMix draws them; found others")


def _masked(images: Tensor, mixed: PuzzlePlan) -> Tensor:
    """Return the mixed rows (B*K, C, H, W): x where the mask says so, elsewhere x'."""
    shown, partner = upload([mixed.shown, mixed.partner], images.device)
    rows, columns = (
        torch.from_numpy(block_of(side, mixed.shown.shape[1])).to(images.device) for side in images.shape[2:]
    )
    members = torch.arange(mixed.k, device=images.device)[:, None, None, None]
    mask = members < shown[:, rows][:, :, columns][:, None, None]
    whole = torch.where(mask, images[:, None], images[partner][:, None]).flatten(0, 1)
    return whole.contiguous(memory_format=_memory_format(images))


def _memory_format(images: Tensor) -> torch.memory_format:
    channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
