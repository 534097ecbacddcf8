"""multimix-pipe bench: measure each backend's images per second on the user's own shards."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from statistics import median
from typing import TYPE_CHECKING, Any

from multimix_pipe.cli.arguments import add_k, add_quiet, add_shards, data_options
from multimix_pipe.config import Backend, TrainTransform, check_int, check_number
from multimix_pipe.errors import counted
from multimix_pipe.mixing import MultiMix
from multimix_pipe.shards.progress import Progress

if TYPE_CHECKING:
    from multimix_pipe import Batch, Loader

AHEAD = 5
"""Batches that may be prefetched before a turn starts, and are therefore not counted."""
FEW_STEPS = 50
"""Below this number of steps per epoch, the start of an epoch affects the rate."""


@dataclass(frozen=True)
class Contender:
    """A loader that is measured."""

    name: str
    rows: int
    """Rows that the model gets for each decoded image."""
    loader: Loader
    rates: list[float] = field(default_factory=list)
    """Images per second, one value per round."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure images per second on your shards",
        description="Measure both backends on your shards, with and without mixing. Each image is decoded once and gives the "
        "model K rows. Nothing is trained, so the rates are upper bounds on what training can reach. Ctrl-C stops early and "
        "prints the rounds measured so far.",
    )
    add_shards(parser)
    add_k(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="images per step; default: %(default)s")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="image size; default: %(default)s")
    parser.add_argument("--no-antialias", action="store_true", help="resize by plain bilinear interpolation")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or mps; default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="decoding threads; default: one per usable core")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="minimum length of a measurement; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each loader; default: %(default)s")
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print a table; after an interrupt or an error, print what has been measured so far."""
    check_number("--seconds", args.seconds, 0.0, open_low=True)
    check_int("--rounds", args.rounds, 1)
    check_int("--batch-size", args.batch_size, 1)
    check_int("--size", args.size, 1, 16384)
    if args.threads is not None:
        check_int("--threads", args.threads, 1, 1024)
    with ExitStack() as stack:
        contenders = []
        for contender in _open(args):
            stack.enter_context(contender.loader)
            contenders.append(contender)
        if (steps := len(contenders[0].loader)) < FEW_STEPS:
            print(
                f"note: an epoch has only {counted(steps, 'step')} and starts with empty queues; a larger data set runs faster"
            )
        try:
            _measure(contenders, args.rounds, args.seconds, quiet=args.quiet)
        finally:
            print(_table([contender for contender in contenders if contender.rates]))
    return 0


def _open(args: argparse.Namespace) -> Iterator[Contender]:
    """Yield a contender for each available backend, with and without mixing."""
    from multimix_pipe.cli.classes import class_names
    from multimix_pipe.loader import open_loader
    from multimix_pipe.loader.backend import dali_import_error
    from multimix_pipe.loader.rank import choose_device
    from multimix_pipe.shards.index import open_index

    device, mix = choose_device(args.device), MultiMix(k=args.k)
    index = open_index(args.source, progress=not args.quiet, **data_options(args))
    setting = f"B = {args.batch_size}, {args.size}x{args.size}, on {device}"
    print(f"{counted(len(index), 'image')} in {counted(len(index.shards), 'shard')}, {setting}")
    missing = dali_import_error()
    if missing is not None:
        print(f"dali: not measured, because DALI cannot be imported: {missing}")
    backends: list[Backend] = ["torch"] if missing is not None or device.type == "mps" else ["dali", "torch"]
    options: dict[str, Any] = {"batch_size": args.batch_size, "num_classes": len(class_names(index))}
    options |= {"transform": TrainTransform(size=args.size, antialias=not args.no_antialias)}
    options |= {"device": args.device, "num_threads": args.threads, "rank": 0, "world_size": 1}
    options |= {"on_bad_sample": "replace", **data_options(args)}
    for backend in backends:
        for name, rows, mixing in ((f"K = {args.k}", args.k, mix), ("no mixing", 1, None)):
            loader = open_loader(args.source, mix=mixing, backend=backend, **options)
            yield Contender(f"{backend}, {name}", rows, loader)


def _measure(contenders: list[Contender], rounds: int, seconds: float, *, quiet: bool) -> None:
    """Measure each contender once per round; the first round is a warm-up and is not counted."""
    endless = [chain.from_iterable(repeat(contender.loader)) for contender in contenders]
    with Progress("measuring", total=(rounds + 1) * len(contenders), unit="turn", disable=quiet) as bar:
        for turn in range(rounds + 1):
            for contender, batches in zip(contenders, endless, strict=True):
                rate = _turn(batches, seconds)
                if turn:
                    contender.rates.append(rate)
                bar.update()


def _turn(batches: Iterator[Batch], at_least: float) -> float:
    """Return the images per second measured over at least `at_least` seconds."""
    for batch in islice(batches, AHEAD):
        batch.images[-1, 0, 0, 0].item()  # waits for the device
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < at_least:
        batch = next(batches)
        images += len(batch.labels)
    batch.images[-1, 0, 0, 0].item()
    return images / (time.perf_counter() - start)


def _table(contenders: list[Contender]) -> str:
    """Format one line per contender: median, minimum and maximum of images/s and of rows/s."""
    lines = [f"{'':18}{'images/s':>10}{'lowest .. highest':>20}{'rows/s':>10}{'lowest .. highest':>20}"]
    for contender in contenders:
        cells = ""
        for factor in (1, contender.rows):
            rates = [factor * rate for rate in contender.rates]
            cells += f"{median(rates):10,.0f}{f'{min(rates):,.0f} .. {max(rates):,.0f}':>20}"
        lines.append(f"{contender.name:18}{cells}")
    return "\n".join(lines) if contenders else "nothing was measured"
