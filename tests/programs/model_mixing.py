"""A process of a data-parallel training with ManifoldMix and PuzzleMix, started by torchrun.

Each process compares its gradients, which DistributedDataParallel has averaged, to those of one model on both processes' batches.
"""

from __future__ import annotations

import copy
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.samples import CLASSES, TRANSFORM
from multimix_pipe import Loader, ManifoldMix, MultiMix, MultiMixLoss, PuzzleMix, open_loader

STEPS = 3


def net() -> nn.Module:
    """No BatchNorm: its statistics would differ from those of the whole."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES)
    )


def opened(folder: Path, **place: Any) -> Loader:
    return open_loader(
        folder,
        batch_size=8,
        num_classes=CLASSES,
        mix=MultiMix(k=3),
        transform=TRANSFORM,
        expand=False,
        device="cpu",
        **place,
    )


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def agree(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def manifold(folder: Path) -> None:
    model = DistributedDataParallel(net())
    alone = net()
    layers = ["input", "0", "2"]
    mixing, reference = ManifoldMix(model, layers), ManifoldMix(alone, layers)
    loss = MultiMixLoss()
    both = zip(*(opened(folder, rank=rank, world_size=2) for rank in range(2)), strict=True)
    drawn = []
    for batch, parts in islice(zip(opened(folder), both, strict=True), STEPS):
        drawn.append(mixing.layer(batch))
        model.zero_grad()
        loss(*mixing(batch)).backward()
        alone.zero_grad()
        for part in parts:
            (loss(*reference(part)) / 2).backward()
        agree(gradients(model), gradients(alone))
    everybody: list[Any] = [None, None]
    dist.all_gather_object(everybody, drawn)
    assert everybody[0] == everybody[1]
    print("manifold: same layers and gradients", flush=True)


def puzzle(folder: Path) -> None:
    model = DistributedDataParallel(net())
    alone = copy.deepcopy(model.module)
    mixing, reference = PuzzleMix(model, blocks=(2, 4)), PuzzleMix(alone, blocks=(2, 4))
    loss = MultiMixLoss()
    both = zip(*(opened(folder, rank=rank, world_size=2) for rank in range(2)), strict=True)
    for batch, parts in islice(zip(opened(folder), both, strict=True), STEPS):
        mixed = mixing(batch)
        model.zero_grad()
        loss(model(mixed.images), mixed.targets).backward()
        alone.zero_grad()
        for part in map(reference, parts):
            (loss(alone(part.images), part.targets) / 2).backward()
        agree(gradients(model), gradients(alone))
    print("puzzle: same gradients", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    manifold(Path(sys.argv[1]))
    puzzle(Path(sys.argv[1]))
    dist.destroy_process_group()
