"""Networks for pipelines/train_classifier.py, as `--model programs.nets:net`."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Colours alone decide. STOP="train 3 SIGTERM" sends that signal in the third forward pass of training; or in "eval"."""

    def __init__(self, num_classes: int, *, rate: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Dropout(rate), nn.Linear(48, num_classes))
        self.passes = {"train": 0, "eval": 0}

    def forward(self, images: Tensor) -> Tensor:
        mode = "train" if self.training else "eval"
        self.passes[mode] += 1
        when, number, name = os.environ.get("STOP", "never 0 SIGINT").split()
        if when == mode and self.passes[mode] == int(number) and os.environ.get("RANK", "1") == "1":
            os.kill(os.getpid(), signal.Signals[name])
        logits: Tensor = self.layers(images)
        return logits


def plain(num_classes: int) -> nn.Module:
    """Whose gradients of a batch do not depend on how it is divided."""
    return Net(num_classes)


def dropout(num_classes: int) -> nn.Module:
    """Which draws random numbers in every step."""
    return nn.Sequential(nn.BatchNorm2d(3), Net(num_classes, rate=0.2))


def infinite(num_classes: int) -> nn.Module:
    """Whose loss is not a number."""
    net = Net(num_classes)
    nn.init.constant_(net.layers[-1].bias, torch.inf)
    return net
