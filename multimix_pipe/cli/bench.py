"""multimix-pipe bench: how many images a second a user's own shards give on this machine."""

from __future__ import annotations

import argparse
import time
from itertools import chain, islice, repeat
from statistics import median
from typing import TYPE_CHECKING, get_args

from multimix_pipe.cli.arguments import add_shards
from multimix_pipe.config import MultiMix, Shuffle, TrainTransform, check_int, check_number
from multimix_pipe.errors import MissingBackendError

if TYPE_CHECKING:
    from multimix_pipe.loader import Loader


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure images a second on your shards",
        description="Measure each backend that imports, with and without mixing, in turn. An image is decoded once and gives K "
        "rows for the model. Nothing is trained: this is the most that the loader can deliver.",
    )
    add_shards(parser)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="images a step; default: %(default)s")
    parser.add_argument("--k", type=int, default=5, help="interpolations of each pair; default: %(default)s")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="of an image; default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps; default: %(default)s")
    parser.add_argument("--threads", type=int, default=None, help="decoding threads; default: usable cores")
    parser.add_argument("--shuffle", choices=get_args(Shuffle), default="global", help="default: %(default)s")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the median rate of each backend and mixing."""
    from multimix_pipe.loader import open_loader
    from multimix_pipe.shards.index import open_index

    check_number("--seconds", args.seconds, 0.0, open_low=True)
    check_int("--rounds", args.rounds, 1)
    index = open_index(args.source, label=args.label, cache_dir=args.cache_dir)
    loaders: dict[str, Loader] = {}
    for backend in ("dali", "torch"):
        for mix in (None, MultiMix(k=args.k)):
            try:
                loaders[f"{backend}, {'no mixing' if mix is None else f'K = {mix.k}'}"] = open_loader(
                    args.source,
                    batch_size=args.batch_size,
                    num_classes=int(index.label.max()) + 1,
                    mix=mix,
                    transform=TrainTransform(size=args.size),
                    backend=backend,
                    device=args.device,
                    shuffle=args.shuffle,
                    on_bad_sample="replace",
                    num_threads=args.threads,
                    label=args.label,
                    cache_dir=args.cache_dir,
                )
            except MissingBackendError as error:
                print(f"{backend}: not measured. {error}")
                break
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.rounds):  # in turn, as the machine's speed may drift
        for name, loader in loaders.items():
            rates[name].append(_images_a_second(loader, args.batch_size, args.seconds))
    print(f"{len(index)} samples, B = {args.batch_size}, {args.size}x{args.size} pixels; median (lowest .. highest)")
    for name, values in rates.items():
        rows = median(values) * (1 if "no mixing" in name else args.k)
        spread = f"({min(values):.0f} .. {max(values):.0f})"
        print(f"{name:18} {median(values):8.0f} images/s {spread:18} {rows:9.0f} rows/s for the model")
    return 0


def _images_a_second(loader: Loader, batch_size: int, seconds: float) -> float:
    """Rate over `seconds`, epochs after each other, from the fourth batch on: the first ones ran ahead."""
    import torch

    def now() -> float:
        if loader.device.type == "cuda":
            torch.cuda.synchronize(loader.device)
        return time.perf_counter()

    batches = chain.from_iterable(repeat(loader))
    for _ in islice(batches, 3):
        pass
    start, count = now(), 0
    for _ in batches:
        count += 1
        if time.perf_counter() - start > seconds:
            break
    return count * batch_size / (now() - start)
