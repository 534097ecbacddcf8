"""multimix-pipe demo: train a small network with multi-mix and without, on made or own images, and show what came out."""

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

from multimix_pipe.cli.arguments import NO_PROGRESS
from multimix_pipe.config import Backend, TrainTransform, check_int, check_number
from multimix_pipe.mixing import MultiMix, Sampling

if TYPE_CHECKING:
    from multimix_pipe.cli.demo.data import DemoData
    from multimix_pipe.cli.demo.training import Recipe, Run

SHAPES = (150, 100)
"""Generated images of each class to train on, and to evaluate on."""
SHAPES_EPOCHS = 8.0
"""Of the generated images; a fixed number, so that everybody gets the same run."""
DATA_MINUTES = 7.0
"""Planned for the two trainings on --data where neither --epochs nor --minutes is given."""
EQUAL = (
    "equal in both runs: network, initial weights, images, crops, flips, optimiser steps, learning rates; "
    "not equal: multi-mix shows the network K mixed rows of each image, and so takes about K times its time"
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="train a small network with multi-mix and without, and compare",
        description="Train a small network twice, with multi-mix and without, and write preview.png, curve.png and "
        "results.json. Without --data it makes ten classes of shapes (two minutes on two cores). "
        f"{EQUAL[0].upper()}{EQUAL[1:]}.",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER|ZIP|SHARDS",
        help="images as class/name.jpg in a folder or zip, with or without train/ and test/ above; or shards",
    )
    parser.add_argument(
        "--test-data", metavar="SHARDS", help="to evaluate on; default: a test split, else 10%% of --data"
    )
    parser.add_argument("--out", metavar="DIR", default="multimix_demo", help="for all results; default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=float, help=f"times that each image is decoded; default: {SHAPES_EPOCHS:g} for the shapes"
    )  # fmt: skip
    length.add_argument(
        "--minutes", type=float, help="choose --epochs by the rate of the first steps, so that both trainings take "
        f"this long; default: {DATA_MINUTES:g} with --data"
    )  # fmt: skip
    parser.add_argument("--k", type=int, default=5, help="interpolations of each pair; default: %(default)s")
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.2,
        help="of Beta(alpha, alpha); default: %(default)s, as so short a training wants little mixing",
    )
    parser.add_argument("--sampling", choices=get_args(Sampling), default="stratified", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS", help="of an image; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of weights and loader; default: %(default)s")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto", help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help=NO_PROGRESS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prepare data, train twice, write the results."""
    _check(args)
    mix = MultiMix(k=args.k, alpha=args.alpha, sampling=args.sampling)
    started, out = time.perf_counter(), Path(args.out)
    # read when torch is first imported: its threads, while they wait, leave the cores to those that decode
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from multimix_pipe.cli.demo.data import prepare_data
    from multimix_pipe.cli.demo.training import BATCH_SIZE, Recipe, epochs_within, open_evaluation, train
    from multimix_pipe.cli.preview import write_preview

    data = prepare_data(args.data, args.test_data, out, SHAPES, progress=not args.quiet)
    print(f"{data.what}: {data.train_count:,} images to train on, {data.test_count:,} to evaluate on, "
          f"{len(data.classes):,} classes")  # fmt: skip
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
                f"{epochs:g} epochs fit {minutes:g} minutes at the rate just measured; --epochs {epochs:g} repeats this run"
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
    _tell(args, out, data, runs, epochs, pictures)
    return 0


def _check(args: argparse.Namespace) -> None:
    check_int("--size", args.size, 16, 1024)
    check_int("--seed", args.seed, 0, 2**63 - 1)
    if args.epochs is not None:
        check_number("--epochs", args.epochs, 0.0, 10_000.0, open_low=True)
    if args.minutes is not None:
        check_number("--minutes", args.minutes, 0.0, 10_000.0, open_low=True)


def _preview_transform(recipe: Recipe) -> TrainTransform:
    """The crops of the training, at a size for people."""
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
    """Draw the curves; whether matplotlib is there to do it."""
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


def _tell(
    args: argparse.Namespace, out: Path, data: DemoData, runs: list[Run], epochs: float, pictures: list[Path]
) -> None:
    mixed, plain = runs
    print(f"\n{'':18}{'accuracy':>9}{'NLL':>8}{'ECE':>8}{'steps':>8}{'rows':>10}{'seconds':>9}")
    for run in runs:
        at = run.last
        print(f"{run.name:18}{at['accuracy']:9.1%}{at['nll']:8.3f}{at['ece']:8.3f}{run.steps:8,}"
              f"{run.rows:10,}{run.seconds:9.0f}")  # fmt: skip
    more = 100 * (mixed.last["accuracy"] - plain.last["accuracy"])
    print(f"multi-mix: {more:+.1f} points of accuracy against no mixing, in one run of one seed, on "
          f"{data.test_count:,} images ({EQUAL})")  # fmt: skip
    print(f"\nwritten: {', '.join(map(str, [out / 'results.json', *pictures]))}")
    if len(pictures) < 2:
        print("no curve.png: matplotlib is not installed; pip install 'multimix-pipe[plot]' draws the curves")
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
