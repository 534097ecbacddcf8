"""How many images per second does a loader decode and mix? This package against the loaders that people use today.

    python bench/end_to_end.py [--shards SHARDS ...] [--k 5 1 none] [--device cuda] [--json FILE] [--chart FILE.png]

Contenders take turns of at least --seconds, each in its own process. Each image is decoded once and gives the model K rows.
Nothing is trained, so the rates are upper bounds. A contender that is not installed, fails, or does not respond for --limit
seconds is listed with the reason. --threads 0 are as many decoding threads or worker processes as there are usable cores.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from data import generated_shards, repeated
from harness import machine_line, parser, report
from multimix_pipe import MultiMixError
from multimix_pipe.config import check_int, check_number
from multimix_pipe.errors import ConfigError, counted
from multimix_pipe.loader.rank import choose_device
from multimix_pipe.shards.cores import share_of_cores
from multimix_pipe.shards.index import open_index
from race import comparison
from race.contenders import CONTENDERS
from race.runner import race
from race.setting import Setting

QUESTION = "How many images per second does a loader decode and mix?"


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    made = parser(__doc__, batch_size=64, size=224, device="cpu", threads=0, seconds=5.0, limit=120.0)
    add = made.add_argument
    add("--shards", nargs="+", help="path, glob, brace pattern or folder; default: generated photos")
    add("--contenders", nargs="+", metavar="NAME", choices=CONTENDERS, default=list(CONTENDERS),
        help=f"one or more of {', '.join(CONTENDERS)}; default: all")  # fmt: skip
    add("--k", nargs="+", type=_k, default=[5, 1, None], metavar="K",
        help="interpolations per pair, or none; several values are measured in sequence; default: 5 1 none")  # fmt: skip
    add("--together", action="store_true", help="measure all K in the same rounds, all of them in memory at once")
    add("--no-antialias", action="store_true", help="resize by plain bilinear interpolation")
    add("--peer", metavar="NAME", choices=CONTENDERS,
        help="contender that ratios refer to; default: the faster of this package's backends")  # fmt: skip
    add("--chart", type=Path, metavar="FILE.png", help="draw a bar chart to this file")
    return made


def _k(text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or none; found {text!r}") from None


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """Return one setting per K. Raises ConfigError, before anything is started, if the arguments cannot work."""
    check_number("--seconds", args.seconds, 0.0, open_low=True)
    check_number("--limit", args.limit, 0.0, open_low=True)
    check_int("--rounds", args.rounds, 1)
    check_int("--batch-size", args.batch_size, 1)
    check_int("--size", args.size, 1, 16384)
    check_int("--threads", args.threads, 0, 1024)
    for k in args.k:
        if k is not None:
            check_int("--k", k, 1, 1024)
    for option in ("k", "contenders"):
        if len(set(getattr(args, option))) < len(getattr(args, option)):
            raise ConfigError(f"--{option} must not repeat a value; found {getattr(args, option)}")
    if args.peer is not None and args.peer not in args.contenders:
        raise ConfigError(f"--peer must be one of the contenders ({', '.join(args.contenders)}); found {args.peer!r}")
    device = choose_device(args.device)
    if device.type == "mps":
        raise ConfigError("--device must be cpu or cuda, as the other contenders do not support MPS; found 'mps'")
    # an epoch reads the generated photos 16 times: some contenders are slow at the start of an epoch
    shards = args.shards or repeated(generated_shards(), 16)
    index = open_index(shards, progress=False)
    usable = int((index.problem == 0).sum())
    if usable < args.batch_size:
        raise ConfigError(
            f"--batch-size must be at most the number of usable samples, {usable} of {len(index)}; found {args.batch_size}"
        )
    setting = Setting(
        shards=list(map(str, index.shards)),
        num_classes=int(index.label.max()) + 1,
        batch_size=args.batch_size,
        k=None,
        threads=args.threads or share_of_cores(),
        size=args.size,
        antialias=not args.no_antialias,
        device=str(device),
    )
    return [replace(setting, k=k) for k in args.k]


def main() -> int:
    """Measure, print a table and write figures and chart. Returns 1 if no contender could be measured."""
    arguments = make_parser()
    args = arguments.parse_args()
    try:
        settings = settings_of(args)
    except MultiMixError as error:
        arguments.exit(2, f"{arguments.prog}: error: {error}\n")
    contenders = {name: CONTENDERS[name] for name in args.contenders}
    minutes = len(contenders) * len(settings) * (args.rounds + 1) * args.seconds / 60
    print(f"measuring takes about {minutes:.1f} minutes, plus the time that the contenders need to start", flush=True)
    races = [settings] if args.together else [[setting] for setting in settings]
    rows = [
        row
        for one in races
        for row in race(contenders, one, seconds=args.seconds, rounds=args.rounds, limit=args.limit)
    ]
    setting = settings[0]
    about = (
        f"{counted(len(setting.shards), 'shard')}, B = {setting.batch_size}, {setting.size}x{setting.size}, "
        f"{'' if setting.antialias else 'no '}antialias, {setting.dtype} on {setting.device}, "
        f"{counted(setting.threads, 'thread')}; {counted(args.rounds, 'round')} of {args.seconds:g} s"
    )
    print(f"{about}\n{machine_line()}\n\n{comparison.table(rows, args.peer)}")
    asked = {"rounds": args.rounds, "seconds": args.seconds}
    report(__doc__, {**asked, **comparison.summary(rows, settings, args.peer)}, args.json)
    if args.chart:
        comparison.chart(args.chart, QUESTION, about, rows, args.peer)
    return 0 if any(row.status == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
