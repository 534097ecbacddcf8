"""One training of the study: the networks, the loop, and what is measured at its end. `study.py` says which runs there are."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multimix_pipe import (
    FGSM,
    Batch,
    EvalTransform,
    MixPlan,
    MultiMix,
    MultiMixLoss,
    TrainTransform,
    apply_mix,
    evaluate,
    open_loader,
)

SPLIT_SEED = 0
"""Of the permutation that chooses the training images and those held out. All runs of a study share them."""


@dataclass(frozen=True)
class Size:
    """What all arms share."""

    net: str
    """A name in NETS."""
    device: str
    """"cpu" (one thread) or "auto"."""
    pixels: int
    """Side of the images."""
    train: int
    """Training images, a multiple of batch_size * K, so that arms of other batch sizes make exactly as many updates."""
    held_out: int
    """Other images of the training set: alphas are chosen and temperatures fitted on them."""
    epochs: int
    batch_size: int
    """B, pairs per update."""
    lr: float
    """Peak learning rate of SGD with Nesterov momentum 0.9; a linear warm-up over a tenth of the updates, then linear to 0."""
    weight_decay: float
    scale: tuple[float, float]
    """Area of the random crops, as a fraction of the image's."""
    flip: float
    """Probability of a horizontal flip."""
    seeds: int
    """Paired seeds of the core arms, 0, 1, ..."""
    further_seeds: int
    """Paired seeds of the others."""
    selection_seeds: int
    """Seeds that alpha is chosen on, SELECTION_SEED, SELECTION_SEED + 1, ..."""
    alphas: tuple[float, ...] = (0.2, 1.0)
    corruptions: tuple[str, ...] = ("gaussian_noise", "gaussian_blur", "contrast", "jpeg")
    severity: int = 3
    fgsm: float = 2.0
    """eps of FGSM, in 255ths."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    mix: dict[str, Any] | None = None
    """Arguments of MultiMix without alpha; None: no mixing."""
    core: bool = False
    """Whether it has the larger number of seeds."""
    pairs: int = 1
    """Factor of the pairs per update. It decodes as many times more images in the same number of updates."""
    longer: int = 1
    """Factor of the epochs."""
    echo: int = 1
    """Updates made with each batch."""
    members: str = ""
    """Members that MultiMix has no spelling for, with K = 1: "identical" (five times the same weight), or "clean" (the plain
    image and the mixed one)."""

    @property
    def has_alpha(self) -> bool:
        """Whether there is an alpha to choose."""
        return self.mix is not None and self.mix.get("prob") != 0


@dataclass
class Data:
    """The images: three disjoint sets, which no seed changes."""

    folder: Path
    """It holds shards in train/, and in test/ or val/."""
    size: Size
    train: list[str] = field(init=False)
    """Keys of the training images."""
    held_out: list[Batch] = field(init=False)
    """Batches to evaluate on, decoded once; likewise `test`."""
    test: list[Batch] = field(init=False)
    num_classes: int = field(init=False)
    fingerprint: str = field(init=False)
    """Of the shards of both folders."""

    def __post_init__(self) -> None:
        size = self.size
        self.options: dict[str, Any] = {"device": size.device, "channels_last": True}
        if size.device == "cpu":
            self.options |= {"num_threads": 1, "backend": "torch"}
        with self._evaluation(self.folder / "train") as loader:
            keys = sorted(loader.index.each_key())
            self.num_classes, classes, fingerprint = loader.num_classes, loader.classes, loader.index.fingerprint
        if len(keys) < size.train + size.held_out:
            raise SystemExit(
                f"study.py: the training set must have at least {size.train} + {size.held_out} images, some to train on and "
                f"some held out; found {len(keys)} in {self.folder / 'train'}"
            )
        order = np.random.default_rng(SPLIT_SEED).permutation(len(keys))
        self.train = [keys[place] for place in order[: size.train]]
        held_out = [keys[place] for place in order[size.train : size.train + size.held_out]]
        with self._evaluation(self.folder / "train", samples=held_out) as loader:
            self.held_out = list(loader)
        test = self.folder / "test"
        with self._evaluation(test if test.exists() else self.folder / "val", classes=classes) as loader:
            self.test = list(loader)
            self.fingerprint = f"{fingerprint[:16]} {loader.index.fingerprint[:16]}"

    def _evaluation(self, shards: Path, **options: Any) -> Any:
        transform = EvalTransform(size=self.size.pixels, resize=self.size.pixels)
        return open_loader(shards, batch_size=500, transform=transform, **self.options, **options)


def convolution(inner: int, outer: int, activation: type[nn.Module], pool: bool = False) -> nn.Sequential:
    """Return a 3x3 convolution, a 2x2 maximum if `pool`, normalisation and activation."""
    layers = [nn.Conv2d(inner, outer, 3, padding=1, bias=False), *([nn.MaxPool2d(2)] if pool else [])]
    return nn.Sequential(*layers, nn.BatchNorm2d(outer), activation())


def small_net(num_classes: int) -> nn.Module:
    """Return a network of 75,466 parameters for ten classes; made for 16x16 images and one CPU core."""
    stem = nn.Sequential(nn.Conv2d(3, 32, 2, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    body = [convolution(32, 64, nn.ReLU), nn.MaxPool2d(2), convolution(64, 96, nn.ReLU)]
    return nn.Sequential(stem, *body, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(96, num_classes))


def airbench_net(num_classes: int) -> nn.Module:
    """Return a network of the shape of KellerJordan/cifar10-airbench's airbench94, without its whitened first layer."""

    class Head(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 9

    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    for inner, outer in ((24, 64), (64, 256), (256, 256)):
        layers += [convolution(inner, outer, nn.GELU, pool=True), convolution(outer, outer, nn.GELU)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), Head(256, num_classes, bias=False))


NETS = {"small": small_net, "airbench": airbench_net}


def rows_of(arm: Arm, batch: Batch, k: int, num_classes: int) -> tuple[Tensor, Any]:
    """Return the images and targets that an arm trains on."""
    if not arm.members:
        return batch.images, batch.targets
    plan = batch.plan.mix  # the loader left the images unmixed, and says how it would mix them
    first = plan.lam if arm.members == "identical" else np.ones_like(plan.lam)
    lam = np.concatenate([first] * (k - 1) + [plan.lam], axis=1)
    mixed = apply_mix(batch.images, batch.labels, MixPlan(plan.partner, lam), num_classes=num_classes)
    return mixed.images, mixed.targets


def train(size: Size, arm: Arm, k: int, alpha: float | None, seed: int, data: Data) -> tuple[nn.Module, dict[str, int]]:
    """Train a network; return it, and the updates, rows and decoded images that it took.

    `seed` decides the initial weights, the order, the crops and the flips, whatever the arm.
    """
    torch.manual_seed(seed)
    model = NETS[size.net](data.num_classes).to(memory_format=torch.channels_last)
    mix = None if arm.mix is None else MultiMix(**arm.mix, **({} if alpha is None else {"alpha": alpha}))
    loader = open_loader(
        data.folder / "train",
        samples=data.train,
        batch_size=arm.pairs * size.batch_size,
        mix=mix,
        expand=not arm.members,
        transform=TrainTransform(size=size.pixels, scale=size.scale, flip=size.flip),
        seed=seed,
        **data.options,
    )
    model = model.to(loader.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=size.lr, momentum=0.9, nesterov=True, weight_decay=size.weight_decay
    )
    epochs = size.epochs * arm.longer * arm.pairs
    updates = epochs * len(loader) * arm.echo
    warmup = max(1, updates // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (updates - step) / max(1, updates - warmup))
    )
    loss_function, count = MultiMixLoss(), {"updates": 0, "rows": 0, "decoded": 0}
    with loader:
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for batch in loader:
                images, targets = rows_of(arm, batch, k, data.num_classes)
                for _ in range(arm.echo):
                    with torch.autocast(loader.device.type, torch.bfloat16):
                        logits = model(images)
                    loss = loss_function(logits, targets)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    count["updates"] += 1
                    count["rows"] += len(images)
                count["decoded"] += len(batch.labels)
    return model, count


def figures(report: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    """Return some figures, rounded to what 10,000 images can tell and more."""
    return {name: round(report[name], 6) for name in names}


def measure(model: nn.Module, size: Size, data: Data, final: bool) -> dict[str, Any]:
    """Return the figures of a trained network: of the held-out images to choose alpha, of the test images at the end."""
    if not final:
        return {"held_out": figures(evaluate(model, data.held_out)["clean"]["raw"], ("top1", "nll", "ece"))}
    transform = TrainTransform()
    report = evaluate(
        model,
        data.test,
        calibration=data.held_out,
        corruptions=size.corruptions,
        severities=(size.severity,),
        attacks=[FGSM(eps=size.fgsm / 255)],
        mean=transform.mean,
        std=transform.std,
    )
    (attacked,) = report["attacks"].values()
    corrupted = {
        name: round(found[str(size.severity)]["raw"]["top1"], 6) for name, found in report["corruptions"].items()
    }
    return {
        "test": figures(report["clean"]["raw"], ("top1", "nll", "brier", "ece", "adaptive_ece", "signed_gap")),
        "scaled": figures(report["clean"]["scaled"], ("nll", "brier", "ece", "adaptive_ece")),
        "temperature": round(report["temperature"], 6),
        "corrupted": corrupted,
        "fgsm": round(attacked["raw"]["top1"], 6),
    }


def run(size: Size, arm: Arm, k: int, alpha: float | None, seed: int, data: Data, final: bool = True) -> dict[str, Any]:
    """Train and measure; return what is known of the run, ready for JSON.

    `cpu_seconds` are those of the training, in all threads of this process; `seconds` those of the whole run.
    """
    if size.device == "cpu":
        torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    model, count = train(size, arm, k, alpha, seed, data)
    spent = round(time.process_time() - cpu, 1)
    found = measure(model, size, data, final)
    return {**count, "cpu_seconds": spent, "seconds": round(time.perf_counter() - wall, 1), **found}
