"""What does multi-mix do to decision regions, accuracy and calibration in two dimensions?

    python pipelines/evidence/two_moons.py [--data moons | spirals] [--alpha 1] --out FOLDER

A small network is trained on 300 points of two classes, without mixing, by mixup and by multi-mix. All arms of a seed share the
training points, the initial weights, the 32 points of each update and the number of updates; only "mixup, 5x pairs" sees five
times as many points in an update, as many rows as K = 5, and "mixup, 5x updates" trains five times as long. Each seed has points
and weights of its own. The metrics are those of 10,000 further points; "scaled" is after temperature scaling on 300 others.
Nothing is chosen by them: the settings are the script's defaults, for every arm.

It writes {data}_alpha{alpha}.json, which it continues if it was stopped, and the decision regions of seed 0 as a PNG (needs
matplotlib). Differences are paired by seed; intervals are percentiles of a bootstrap over the seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evidence import Float, Results, interval, one_line_errors, resample, show
from multimix_pipe import MultiMix, MultiMixLoss, mix_batch
from multimix_pipe.training.evaluation import fit_temperature, metrics, row_statistics

POINTS, TEST_POINTS, BATCH = 300, 10_000, 32
METRICS = {"top1": "accuracy", "nll": "NLL", "ece": "ECE", "nll_scaled": "NLL scaled", "ece_scaled": "ECE scaled"}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    mix: MultiMix | None
    batch: int = BATCH
    longer: int = 1


def arms(alpha: float) -> dict[str, Arm]:
    return {
        "no mixing": Arm(None),
        "mixup": Arm(MultiMix(k=1, alpha=alpha)),
        "K=2 stratified": Arm(MultiMix(k=2, alpha=alpha, sampling="stratified")),
        "K=5 iid": Arm(MultiMix(k=5, alpha=alpha)),
        "K=5 stratified": Arm(MultiMix(k=5, alpha=alpha, sampling="stratified")),
        "mixup, 5x pairs": Arm(MultiMix(k=1, alpha=alpha), batch=5 * BATCH),
        "mixup, 5x updates": Arm(MultiMix(k=1, alpha=alpha), longer=5),
    }


def moons(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return points (count, 2) on two interleaved half circles, with noise of 0.2, and their classes (count,)."""
    labels = np.arange(count) % 2
    angle = rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.where(labels[:, None] == 0, upper, [1.0, 0.5] - upper) - [0.5, 0.25]
    return _tensors(points + rng.normal(0, 0.2, points.shape), labels)


def spirals(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return points (count, 2) on two spirals of one and a half turns, with noise of 0.08, and their classes (count,)."""
    labels = np.arange(count) % 2
    along = np.sqrt(rng.uniform(0.02, 1, count))
    angle = 3 * np.pi * along + np.pi * labels
    points = 1.5 * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return _tensors(points + rng.normal(0, 0.08, points.shape), labels)


def _tensors(points: Float, labels: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


DATA = {"moons": moons, "spirals": spirals}


def train(arm: Arm, points: Tensor, labels: Tensor, seed: int, updates: int) -> nn.Module:
    """Train a network from the initial weights of `seed`, with one batch per update."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    updates *= arm.longer
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    loss_function = MultiMixLoss()
    for step in range(updates):
        rows = torch.from_numpy(np.random.default_rng([seed, step]).permutation(len(points))[: arm.batch])
        if arm.mix is None:
            inputs, targets = points[rows], labels[rows]
        else:
            inputs, targets = mix_batch(points[rows], labels[rows], arm.mix, num_classes=2, step=step, seed=seed)
        optimizer.zero_grad()
        loss_function(net(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def score(net: nn.Module, test: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return METRICS on `test`; the temperature is fitted on `held_out`."""
    logits, labels = net(test[0]), test[1]
    plain = metrics(row_statistics(logits, labels))
    scaled = metrics(row_statistics(logits, labels, fit_temperature(net(held_out[0]), held_out[1])))
    found = {name: plain[name] for name in ("top1", "nll", "ece")}
    return found | {f"{name}_scaled": scaled[name] for name in ("nll", "ece")}


@torch.no_grad()
def regions(net: nn.Module, side: float = 2.0, steps: int = 120) -> Float:
    """Return the probability of class 1 on a grid over [-side, side]^2, (steps, steps)."""
    axis = torch.linspace(-side, side, steps)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return net(torch.stack([x, y], -1).flatten(0, 1)).softmax(1)[:, 1].reshape(steps, steps).double().numpy()


def samples(data: str, seed: int, points: int = TEST_POINTS) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the points to train on, to scale on and to test on."""
    rng = np.random.default_rng([1_000_000, seed])
    return tuple(DATA[data](count, rng) for count in (POINTS, POINTS, points))


def summary(seeds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return for each arm and metric the mean over the seeds, and the paired differences to no mixing and to mixup."""
    counts = resample(len(seeds))

    def mean(values: list[float]) -> list[float]:
        return interval(counts @ np.array(values) / len(values))

    found: dict[str, dict[str, Any]] = {}
    for arm in seeds[0]:
        found[arm] = {}
        for metric in METRICS:
            values = [seed[arm][metric] for seed in seeds]
            found[arm][metric] = {"mean": mean(values)}
            for other in ("no mixing", "mixup"):
                less = [value - seed[other][metric] for value, seed in zip(values, seeds, strict=True)]
                found[arm][metric][f"minus {other}"] = mean(less)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    add("--data", choices=list(DATA), default="moons", help="default: %(default)s")
    add("--alpha", type=float, default=1.0, help="weights from Beta(alpha, alpha); default: %(default)s")
    add("--seeds", type=int, default=20, help="default: %(default)s")
    add("--updates", type=int, default=1000, help="default: %(default)s")
    add("--quick", action="store_true", help="two seeds of five updates: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.updates = 2, 5
    if args.seeds < 2 or args.updates < 1:
        parser.error("--seeds must be at least 2, --updates 1")

    name = f"{args.data}_alpha{args.alpha:g}"
    settings = {
        "data": args.data,
        "alpha": args.alpha,
        "seeds": args.seeds,
        "updates": args.updates,
        "quick": args.quick,
    }
    results = Results(args.out / f"{name}.json", settings)
    for seed in range(args.seeds):
        if f"seed {seed}" in results.parts:
            continue
        points, held_out, test = samples(args.data, seed)
        found = {
            arm: score(train(how, *points, seed, args.updates), test, held_out) for arm, how in arms(args.alpha).items()
        }
        results.add(
            f"seed {seed}", {arm: {key: round(value, 5) for key, value in at.items()} for arm, at in found.items()}
        )
        print(f"seed {seed}: " + ", ".join(f"{arm} {at['top1']:.1%}" for arm, at in found.items()), flush=True)
    results.add("summary", summary([results.parts[f"seed {seed}"] for seed in range(args.seeds)]))
    print_table(results.parts["summary"])
    draw(args, results.parts["summary"], args.out / f"{name}.png")


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Print means, and differences to no mixing and to mixup, as tables in Markdown."""
    for what in ("mean", "minus no mixing", "minus mixup"):
        print(f"\n| {what} | " + " | ".join(METRICS.values()) + " |\n|---|" + "---|" * len(METRICS))
        for arm, at in found.items():
            cells = [show([100 * value for value in at[name][what]], 2) if name != "nll" and name != "nll_scaled"
                     else show(at[name][what], 3) for name in METRICS]  # fmt: skip
            print(f"| {arm} | " + " | ".join(cells) + " |")


def draw(args: argparse.Namespace, found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the decision regions of seed 0; say so if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path.name}: drawing it needs matplotlib (pip install 'multimix-pipe[plot]')")
        return
    chosen = list(arms(args.alpha).items())[:5]
    (points, labels), *_ = samples(args.data, 0, 1)
    figure = Figure(figsize=(13, 3), layout="constrained")
    for axes, (name, arm) in zip(figure.subplots(1, len(chosen), sharey=True), chosen, strict=True):
        grid = regions(train(arm, points, labels, 0, args.updates))
        axis = np.linspace(-2, 2, len(grid))
        axes.contourf(axis, axis, grid, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.8)
        axes.contour(axis, axis, grid, levels=[0.5], colors="black", linewidths=1)
        axes.scatter(*points.T, c=["#16365c" if label == 0 else "#7a1419" for label in labels], s=4)
        at = found[name]
        axes.set_title(f"{name}\naccuracy {at['top1']['mean'][0]:.1%}, ECE {at['ece']['mean'][0]:.1%}", fontsize=9)
        axes.set(xticks=[], yticks=[], xlim=(-2, 2), ylim=(-2, 2))
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")


if __name__ == "__main__":
    with one_line_errors():
        main()
