"""The demo's network, small enough to train on a CPU within minutes."""

from __future__ import annotations

from torch import Tensor, nn


def small_net(num_classes: int) -> nn.Module:
    """Return a network that maps images (N, 3, H, W), with H and W >= 16, to logits (N, num_classes).

    It has 0.44 M parameters and takes 15 M multiplications per image at 32x32. The first convolution already halves the
    image, because on a CPU the layers at full resolution cost the most and gain the least.
    """
    return nn.Sequential(
        _conv(3, 32, kernel=4, stride=2),  # 16x16, from 32x32
        _conv(32, 64),
        nn.MaxPool2d(2),  # 8x8
        _conv(64, 128),
        nn.MaxPool2d(2),  # 4x4
        _Residual(128),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, num_classes),
        _Scale(1 / 8),
    )


def _conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


class _Scale(nn.Module):
    """Scales the logits down: uncertain first predictions keep the first steps at a high learning rate from diverging."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out
