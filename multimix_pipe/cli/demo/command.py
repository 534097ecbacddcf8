"""multimix-pipe demo: train a small network with and without multi-mix, on generated or given images, and compare."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from multimix_pipe.cli.arguments import add_backend, add_k, add_quiet
from multimix_pipe.config import TrainTransform, check_int, check_number
from multimix_pipe.errors import counted
from multimix_pipe.mixing import MultiMix, Sampling

if TYPE_CHECKING:
    from multimix_pipe.cli.demo.data import DemoData
    from multimix_pipe.cli.demo.training import Recipe, Run

SHAPES = (150, 100)
"""Number of generated training and test images per class."""
SHAPES_EPOCHS = 8.0
"""Default number of epochs on the generated images; a fixed number, so that everybody gets the same run."""
DATA_MINUTES = 7.0
"""Default total length of the two trainings on --data."""
EQUAL = (
    "Both runs share the network, initial weights, images, crops, flips, optimiser steps and learning rates, "
    "but multi-mix shows the network K mixed rows per image and so takes about K times as long."
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="train a small network with and without multi-mix, and compare",
        description="Train a small network twice, with and without multi-mix, and write preview.png, curve.png and "
        f"results.json. Without --data it trains on ten classes of generated shapes (two minutes on two cores). {EQUAL}",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER|ZIP|SHARDS",
        help="shards, or a folder or zip of images as class/name.jpg, with or without train/ and test/ above them",
    )
    parser.add_argument(
        "--test-data",
        metavar="SHARDS",
        help="shards to evaluate on; default: the test split of --data if it has one, else 10%% of --data",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="multimix_demo", help="folder for the results; default: %(default)s"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=float, help=f"number of epochs; default: {SHAPES_EPOCHS:g} for the generated shapes"
    )
    length.add_argument(
        "--minutes", type=float, help="choose the number of epochs from the speed of the first steps, so that both "
        f"trainings together take this long; default: {DATA_MINUTES:g} with --data"
    )  # fmt: skip
    add_k(parser)
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.2,
        help="draw weights from Beta(alpha, alpha); default: %(default)s, as little mixing suits such a short training",
    )
    parser.add_argument(
        "--sampling",
        choices=get_args(Sampling),
        default="stratified",
        help="how weights are drawn; default: %(default)s",
    )
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS", help="image size; default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the network's weights and of the loader; default: %(default)s"
    )
    add_backend(parser)
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prepare the data, train twice and write the results."""
    _check(args)
    mix = MultiMix(k=args.k, alpha=args.alpha, sampling=args.sampling)
    started, out = time.perf_counter(), Path(args.out)
    # torch reads this when it is first imported: its idle threads then sleep instead of taking cores from decoding
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from multimix_pipe.cli.demo.data import prepare_data
    from multimix_pipe.cli.demo.training import BATCH_SIZE, Recipe, epochs_within, open_evaluation, train
    from multimix_pipe.cli.preview import write_preview

    data = prepare_data(args.data, args.test_data, out, SHAPES, progress=not args.quiet)
    print(f"{data.what}: {counted(data.train_count, 'training image')}, {counted(data.test_count, 'test image')}, "
          f"{counted(len(data.classes), 'class')}")  # fmt: skip
    recipe = Recipe(mix, args.size, args.seed, args.backend)
    write_preview(
        [data.train], out / "preview.png", pairs=6, mix=mix, transform=_preview_transform(recipe),
        seed=args.seed, backend=args.backend, progress=not args.quiet,
    )  # fmt: skip
    with open_evaluation(recipe, data) as test:
        epochs = args.epochs
        if epochs is None and args.data is None and args.minutes is None:
            epochs = SHAPES_EPOCHS
        if epochs is None:
            minutes = DATA_MINUTES if args.minutes is None else args.minutes
            epochs = epochs_within(minutes, recipe, data, test)
            print(
                f"{epochs:g} epochs should take about {minutes:g} minutes; to repeat this run, use --epochs {epochs:g}"
            )
        runs = [train(recipe, data, epochs, mixed, test, progress=not args.quiet) for mixed in (True, False)]
        backend, device = test.backend, str(test.device)
    settings = {
        "epochs": epochs,
        "mix": asdict(mix),
        "size": recipe.size,
        "seed": recipe.seed,
        "batch_size": BATCH_SIZE,
        "backend": backend,
        "device": device,
    }
    _write_results(out, args, data, runs, settings, time.perf_counter() - started)
    pictures = [out / "preview.png", *([out / "curve.png"] if _draw_curves(out / "curve.png", data, runs) else [])]
    _print_summary(args, out, data, runs, epochs, pictures)
    return 0


def _check(args: argparse.Namespace) -> None:
    check_int("--size", args.size, 16, 1024)
    check_int("--seed", args.seed, 0, 2**63 - 1)
    if args.epochs is not None:
        check_number("--epochs", args.epochs, 0.0, 10_000.0, open_low=True)
    if args.minutes is not None:
        check_number("--minutes", args.minutes, 0.0, 10_000.0, open_low=True)


def _preview_transform(recipe: Recipe) -> TrainTransform:
    """Return the training transform at a size that people can see."""
    return replace(recipe.train_transform, size=max(recipe.size, 96))


def _write_results(
    out: Path, args: argparse.Namespace, data: DemoData, runs: list[Run], settings: dict[str, Any], seconds: float
) -> None:
    from multimix_pipe import __version__
    from multimix_pipe.runtime.machine import describe_machine, package_versions

    result = {
        "command": args.command_line,
        "versions": {"multimix_pipe": __version__, "python": sys.version.split()[0], **package_versions()},
        "machine": describe_machine(),
        "data": {"what": data.what, "train": data.train_count, "test": data.test_count, "classes": len(data.classes)},
        "settings": settings,
        "comparison": EQUAL,
        "runs": [asdict(run) for run in runs],
        "seconds": seconds,
    }
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _draw_curves(path: Path, data: DemoData, runs: list[Run]) -> bool:
    """Draw the learning curves; return False if matplotlib is not installed."""
    from multimix_pipe.cli.picture import Panel, draw_panels

    metrics = (("test accuracy", "accuracy"), ("test loss (NLL)", "nll"), ("training loss", "train_loss"))
    panels = [
        Panel(title, "epoch", {run.name: [(at["epoch"], at[metric]) for at in run.history] for run in runs},
              percent=metric == "accuracy")
        for title, metric in metrics
    ]  # fmt: skip
    try:
        draw_panels(panels, f"{data.what}, {runs[0].steps} steps", path)
    except ImportError:
        return False
    return True


def _print_summary(
    args: argparse.Namespace, out: Path, data: DemoData, runs: list[Run], epochs: float, pictures: list[Path]
) -> None:
    mixed, plain = runs
    print(f"\n{'':18}{'accuracy':>9}{'NLL':>8}{'ECE':>8}{'steps':>8}{'rows':>10}{'seconds':>9}")
    for run in runs:
        at = run.last
        print(f"{run.name:18}{at['accuracy']:9.1%}{at['nll']:8.3f}{at['ece']:8.3f}{run.steps:8,}"
              f"{run.rows:10,}{run.seconds:9.0f}")  # fmt: skip
    more = 100 * (mixed.last["accuracy"] - plain.last["accuracy"])
    print(f"multi-mix changed accuracy by {more:+.1f} points, measured on {counted(data.test_count, 'test image')} with "
          "one seed.")  # fmt: skip
    print(EQUAL)
    print(f"\nwrote {', '.join(map(str, [out / 'results.json', *pictures]))}")
    if len(pictures) < 2:
        print("no curve.png: drawing it needs matplotlib (pip install 'multimix-pipe[plot]')")
    print("\nnext:")
    grid, longer = out / "grid.png", out.with_name(out.name + "_longer")
    own = ["--data", args.data] if args.data else []
    own += ["--test-data", args.test_data] if args.test_data else []
    for command in (
        ["preview", data.train, "-o", str(grid), "--sampling", "stratified"],
        ["demo", *own, "--epochs", f"{4 * epochs:g}", "--out", str(longer)],
        ["verify", data.train] if args.data else ["demo", "--data", "FOLDER_OF_YOUR_IMAGES", "--out", "my_demo"],
    ):
        print(f"  {shlex.join(['multimix-pipe', *command])}")
