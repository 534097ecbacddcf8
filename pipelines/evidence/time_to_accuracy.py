"""How soon does training reach an accuracy if decoding is the bottleneck?

    python pipelines/evidence/time_to_accuracy.py [SHARDS] [--side 400] --out FOLDER

SHARDS is a folder of small images that `multimix-pipe pack` wrote, as CIFAR-10; without it, the images are generated shapes. They
are enlarged to photos of --side x --side pixels with grain, as grain is what makes photos costly to decode, and written as JPEG
into a temporary folder. One thread decodes, crops and resizes them; the main thread trains the study's small network on 16x16
pixels. All arms see the same images in the same order, and decode each once per epoch.

The learning rate is constant after a warm-up, and the average of the latest weights is evaluated. So a run needs no length
that is chosen in advance: where its accuracy first reaches a target, between two evaluations, is where it could have stopped. It
writes time_to_accuracy.json, which it continues if it was stopped, tables to time_to_accuracy.md and time_to_accuracy.png (needs
matplotlib).

Seconds of CPU time are counted for the main thread, without evaluations, and for all other threads of the process, which read,
decode, crop, resize and mix. On a quiet machine the larger of the two is about the time that passes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evidence import Results, checksum, one_line_errors, read_images
from multimix_pipe import Batch, EvalTransform, MultiMix, MultiMixLoss, TrainTransform, open_loader
from multimix_pipe.shards.pack import pack
from study_report import markdown
from study_run import Arm, small_net

K = 5
ARMS = {
    "no mixing": Arm(),
    "no mixing, 5 updates a batch": Arm(echo=K),
    "no mixing, 5 crops": Arm({"k": K, "crops": "each", "prob": 0.0}),
    "mixup": Arm({"k": 1}),
    "K=2 stratified": Arm({"k": 2, "sampling": "stratified"}),
    "K=5 stratified": Arm({"k": K, "sampling": "stratified"}),
    "K=5 crops each": Arm({"k": K, "sampling": "stratified", "crops": "each"}),
}
PIXELS, BATCH_SIZE, LR, WEIGHT_DECAY, SCALE = 16, 64, 0.1, 5e-4, (0.5, 1.0)  # those of study.py
WARM_UP = 40
"""Updates until the learning rate is LR."""
AVERAGE = 0.98
"""Share of the average weights that is kept at each batch."""
EVERY = 20
"""Batches from one evaluation to the next."""
COLUMNS = ("decoded", "updates", "rows", "seconds", "loader_cpu", "training_cpu", "accuracy")

Curve = dict[str, list[float]]
"""COLUMNS -> a value for each evaluation."""


# data


def enlarge(pixels: Tensor, side: int, grain: float, rng: np.random.Generator) -> Image.Image:
    """Return an image (3, H, W) of values in [0, 1] as a photo of side x side pixels; grain is a standard deviation in 255ths."""
    small = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    grains = rng.standard_normal((side, side, 1), dtype=np.float32) * grain
    return Image.fromarray((large + grains).round().clip(0, 255).astype(np.uint8))


def write_photos(images: Tensor, labels: Tensor, folder: Path, args: argparse.Namespace) -> float:
    """Write shards folder/train and folder/test, the latter of the last images; return the mean bytes of a photo."""
    total = 0
    low, high = (extreme(images, (0, 2, 3))[:, None, None] for extreme in (torch.amin, torch.amax))  # black and white
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        split = "train" if number < len(images) - args.test else "test"
        path = folder / "images" / split / f"{label:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([2, number])
        enlarge((image - low) / (high - low), args.side, args.grain, rng).save(path, quality=90)
        total += path.stat().st_size
    pack(folder / "images", folder, progress=False)
    return total / len(images)


def read_batches(shards: Path) -> list[Batch]:
    """Return batches to evaluate on, decoded once."""
    transform = EvalTransform(size=PIXELS, resize=PIXELS)
    with open_loader(shards, batch_size=500, transform=transform, device="cpu", backend="torch") as loader:
        return list(loader)


# one run


@torch.no_grad()
def accuracy(model: nn.Module, test: list[Batch]) -> float:
    """Return the share of images that the model classifies correctly."""
    correct = sum(int((model(batch.images).argmax(1) == batch.labels).sum()) for batch in test)
    return correct / sum(len(batch.labels) for batch in test)


class Clock:
    """What has passed since it was made: seconds, and CPU time of the loader's threads and of the main thread."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time(), time.thread_time()
        self.evaluating = 0.0
        """CPU time of the main thread that is not counted as training."""

    def read(self) -> tuple[float, float, float]:
        """Return seconds, CPU seconds of the other threads, CPU seconds of training."""
        wall, process, thread = (
            now() - start
            for now, start in zip((time.perf_counter, time.process_time, time.thread_time), self._start, strict=True)
        )
        return wall, process - thread, thread - self.evaluating


def train(arm: Arm, seed: int, folder: Path, test: list[Batch], classes: int, args: argparse.Namespace) -> Curve:
    """Train for args.epochs epochs. `seed` decides initial weights, order, crops and flips, whatever the arm."""
    torch.manual_seed(seed)
    model = small_net(classes).to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    mix = None if arm.mix is None else MultiMix(alpha=args.alpha, **arm.mix)
    transform = TrainTransform(size=PIXELS, scale=SCALE)
    curve: Curve = {name: [] for name in COLUMNS}
    count = {"decoded": 0, "updates": 0, "rows": 0}
    loss_function = MultiMixLoss()
    with open_loader(
        folder / "train", batch_size=BATCH_SIZE, num_classes=classes, mix=mix, transform=transform, seed=seed,
        device="cpu", backend="torch", num_threads=1, channels_last=True,
    ) as loader:  # fmt: skip
        next(iter(loader))  # compiles what is compiled
        clock = Clock()
        for epoch in range(args.epochs):
            loader.set_epoch(epoch)
            for step, batch in enumerate(loader, 1):
                for _ in range(arm.echo):
                    with torch.autocast("cpu", torch.bfloat16):
                        logits = model(batch.images)
                    optimizer.zero_grad(set_to_none=True)
                    loss_function(logits, batch.targets).backward()
                    optimizer.step()
                    schedule.step()
                average.update_parameters(model)
                count["decoded"] += len(batch.labels)
                count["updates"] += arm.echo
                count["rows"] += arm.echo * len(batch.images)
                if step % args.every == 0 or step == len(loader):
                    began = time.thread_time()
                    found = accuracy(average.eval(), test)
                    clock.evaluating += time.thread_time() - began
                    for name, value in zip(COLUMNS, (*count.values(), *clock.read(), found), strict=True):
                        curve[name].append(round(value, 4))
    return curve


# what is reported


def reach(curve: Curve, target: float) -> dict[str, float] | None:
    """Return COLUMNS where the accuracy first reaches `target`, linear between two evaluations; None if it never does."""
    after = next((place for place, value in enumerate(curve["accuracy"]) if value >= target), None)
    if after is None:
        return None
    values = {name: np.array([0.0, *column]) for name, column in curve.items()}
    before, now = values["accuracy"][after : after + 2]
    share = (target - before) / (now - before)
    return {name: float(column[after] + share * (column[after + 1] - column[after])) for name, column in values.items()}


def tables(parts: dict[str, Any], targets: list[float], seeds: list[int]) -> str:
    """Return for each target what each arm needs, as means over the seeds, and relative to mixup at each seed; in Markdown."""
    shown = ("decoded", "updates", "rows", "loader_cpu", "training_cpu", "seconds")
    head = ["seeds", "decoded images", "updates", "rows", "CPU s, loader", "CPU s, training", "seconds"]
    head += ["decoded images, of mixup's", "CPU s of the busier side, of mixup's"]
    runs = {arm: [parts[f"{arm}, seed {seed}"] for seed in seeds] for arm in ARMS}
    found = []
    for target in targets:
        rows = []
        base = [reach(curve, target) for curve in runs["mixup"]]
        for arm, curves in runs.items():
            at = [reach(curve, target) for curve in curves]
            there = [here for here in at if here is not None]
            means = [f"{np.mean([here[name] for here in there]):,.0f}" if there else "" for name in shown]
            pairs = [(here, other) for here, other in zip(at, base, strict=True) if here and other]
            images = ", ".join(f"{here['decoded'] / other['decoded']:.2f}" for here, other in pairs)
            busier = ", ".join(f"{bottleneck(here) / bottleneck(other):.2f}" for here, other in pairs)
            rows.append([arm, f"{len(there)} of {len(seeds)}", *means, images, busier])
        found.append(markdown([f"{target:.0%} accuracy", *head], rows))
    rows = []
    for arm, curves in runs.items():
        ends = [100 * curve["accuracy"][-1] for curve in curves]
        cost = (f"{np.mean([curve[name][-1] for curve in curves]):,.0f}" for name in shown)
        rows.append([arm, f"{np.mean(ends):.1f}", ", ".join(f"{end:.1f}" for end in ends), *cost])
    return "\n\n".join([*found, markdown(["at the end", "accuracy, %", "each seed", *head[1:7]], rows)]) + "\n"


def bottleneck(at: dict[str, float]) -> float:
    """Return the CPU seconds of the busier side: about the time on a quiet machine."""
    return max(at["loader_cpu"], at["training_cpu"])


def draw(parts: dict[str, Any], targets: list[float], seeds: list[int], path: Path) -> None:
    """Draw the mean accuracy against decoded images, and against the time of the busier side; say so if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path.name}: drawing it needs matplotlib (pip install 'multimix-pipe[plot]')")
        return
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, arm in enumerate(ARMS):
        curves = [{name: np.array(column) for name, column in parts[f"{arm}, seed {seed}"].items()} for seed in seeds]
        heights = np.mean([curve["accuracy"] for curve in curves], 0)
        style = {"color": f"C{place}", "linestyle": "--" if arm.startswith("no mixing") else "-", "label": arm}
        left.plot(curves[0]["decoded"] / 1000, 100 * heights, **style)
        busier = [np.maximum(curve["loader_cpu"], curve["training_cpu"]) for curve in curves]
        right.plot(np.mean(busier, 0), 100 * heights, **style)
    for axes, label in (
        (left, "thousands of decoded images"),
        (right, "CPU seconds of the busier of loader and training"),
    ):
        for target in targets:
            axes.axhline(100 * target, color="0.7", linewidth=1, linestyle=":")
        axes.set(xlabel=label, ylim=(30, None))
        axes.grid(color="#e8e8e8")
    left.set_ylabel("accuracy, %")
    left.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("shards", nargs="?", help="folder of shards with small images; default: generated shapes")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    add("--side", type=int, default=400, help="height and width of the photos; default: %(default)s")
    add("--grain", type=float, default=8.0, help="standard deviation of their grain, in 255ths; default: %(default)s")
    add("--images", type=int, default=5120, help="photos to train on, a multiple of 64; default: %(default)s")
    add("--test", type=int, default=2500, help="other photos to evaluate on; default: %(default)s")
    add("--epochs", type=int, default=8, help="default: %(default)s")
    add("--alpha", type=float, default=0.2, help="weights from Beta(alpha, alpha); default: %(default)s")
    add("--targets", type=float, nargs="+", default=[0.45, 0.48, 0.5], help="accuracies; default: %(default)s")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: %(default)s")
    add("--quick", action="store_true", help="very little of everything: does it run?")
    args = parser.parse_args()
    args.every = EVERY
    if args.quick:
        vars(args).update(images=64, test=20, epochs=2, side=40, seeds=[0], every=1, targets=[0.1])
    if min(args.images, args.test, args.epochs) < 1 or args.images % BATCH_SIZE or args.side < PIXELS:
        parser.error("--images must be a multiple of 64; --test and --epochs at least 1, --side 16")
    torch.set_num_threads(1)
    MultiMix(alpha=args.alpha)  # an error of its own if alpha is out of range
    images, labels, names = read_images(args.shards, 32, args.images + args.test)
    settings = {name: getattr(args, name) for name in ("side", "grain", "images", "test", "epochs", "alpha")}
    results = Results(args.out / "time_to_accuracy.json", settings | {"checksum": checksum(images, labels)})
    todo = [(seed, arm) for seed in args.seeds for arm in ARMS if f"{arm}, seed {seed}" not in results.parts]
    if todo:
        with tempfile.TemporaryDirectory() as folder:
            print(f"photos of {write_photos(images, labels, Path(folder), args):,.0f} bytes", flush=True)
            test = read_batches(Path(folder) / "test")
            for place, (seed, arm) in enumerate(todo, 1):
                curve = train(ARMS[arm], seed, Path(folder), test, len(names), args)
                results.add(f"{arm}, seed {seed}", curve)
                end = {name: column[-1] for name, column in curve.items()}
                print(
                    f"run {place} of {len(todo)}: {arm}, seed {seed}: {end['accuracy']:.1%} in {end['seconds']:.0f} s, "
                    f"CPU {end['loader_cpu']:.0f} s of the loader, {end['training_cpu']:.0f} s of training",
                    flush=True,
                )
    text = tables(results.parts, args.targets, args.seeds)
    (args.out / "time_to_accuracy.md").write_text(text, encoding="utf-8")
    print("\n" + text)
    draw(results.parts, args.targets, args.seeds, args.out / "time_to_accuracy.png")


if __name__ == "__main__":
    with one_line_errors():
        main()
