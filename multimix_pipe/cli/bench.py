"""multimix-pipe bench: how many images a second a user's own shards give on this machine, and to whom."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from multimix_pipe.benchmark.contenders import CONTENDERS
from multimix_pipe.benchmark.setting import Setting
from multimix_pipe.cli.arguments import add_shards
from multimix_pipe.config import check_int, check_number
from multimix_pipe.errors import ConfigError

logger = logging.getLogger("multimix_pipe")

QUESTION = "How many images a second come out, decoded and mixed?"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure images a second on your shards, against other loaders",
        description="Measure this package's backends and other loaders in turn, each in a process of its own. An image is "
        "decoded once and gives K rows for the model. Nothing is trained: this is the most that a loader can deliver. What is "
        "not installed, or fails, is listed with the reason.",
    )
    add_shards(parser)
    add_options(parser)
    parser.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All but the shards; bench/end_to_end.py takes the same."""
    names = ", ".join(CONTENDERS)
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        help=f"of {names}; default: all",
    )
    parser.add_argument(
        "--k",
        nargs="+",
        type=_k,
        default=[5, 1, None],
        metavar="K",
        help="interpolations of each pair, or none; one after the other; default: 5 1 none",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="images a step; default: %(default)s")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="of an image; default: %(default)s")
    parser.add_argument("--no-antialias", action="store_true", help="plain linear interpolation")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each; default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=None, help="threads or worker processes that decode; default: usable cores"
    )
    parser.add_argument(
        "--peer",
        metavar="NAME",
        choices=CONTENDERS,
        help="whom the ratios are to; default: the faster of this package's backends",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="measure all K in the same rounds; all of them are in memory at once then",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="give a contender up that does not answer for so long; default: %(default)s",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw a bar chart there")


def _k(text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or none; found {text!r}") from None


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table. Returns 1 where no contender gave a figure."""
    from multimix_pipe.benchmark import comparison, harness
    from multimix_pipe.benchmark.runner import race
    from multimix_pipe.drawing import save_picture

    settings = settings_of(args)
    contenders = {name: CONTENDERS[name] for name in args.contenders}
    turns = {"seconds": args.seconds, "rounds": args.rounds, "limit": args.limit}
    races = [settings] if args.together else [[setting] for setting in settings]
    turns_length = len(contenders) * len(settings) * (args.rounds + 1) * args.seconds
    logger.info("about %.1f minutes of measuring, and the time that the contenders take to start", turns_length / 60)
    rows = [row for one in races for row in race(contenders, one, **turns)]
    setting = settings[0]
    about = (
        f"{len(setting.shards)} shards, B = {setting.batch_size}, {setting.size}x{setting.size}, "
        f"{'' if setting.antialias else 'no '}antialias, {setting.dtype} on {setting.device}, {setting.threads} threads; "
        f"{args.rounds} rounds of {args.seconds:g} s"
    )
    print(f"{QUESTION}\n{about}\n{harness.machine_line()}\n")
    print(comparison.table(rows, args.peer))
    if args.json:
        found = comparison.summary(rows, settings, args.peer)
        asked = {"question": QUESTION, "command": args.command_line, "rounds": args.rounds, "seconds": args.seconds}
        harness.write_json(args.json, {**asked, **found})
    if args.chart:
        save_picture(comparison.chart(QUESTION, about, rows, args.peer), args.chart)
    return 0 if any(row.status == "ok" for row in rows) else 1


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """The work, one for each K. Raises ConfigError for what cannot work, before anything is started."""
    from multimix_pipe.loader.rank import choose_device, default_threads
    from multimix_pipe.shards.index import open_index

    check_number("--seconds", args.seconds, 0.0, open_low=True)
    check_number("--limit", args.limit, 0.0, open_low=True)
    check_int("--rounds", args.rounds, 1)
    check_int("--batch-size", args.batch_size, 1)
    for k in args.k:
        if k is not None:
            check_int("--k", k, 1, 1024)
    for option in ("k", "contenders"):
        if len(set(getattr(args, option))) < len(getattr(args, option)):
            raise ConfigError(f"--{option} must name each once; found {getattr(args, option)}")
    threads = default_threads() if args.threads is None else args.threads
    check_int("--threads", threads, 1, 1024)
    check_int("--size", args.size, 1, 16384)
    if args.peer is not None and args.peer not in args.contenders:
        raise ConfigError(
            f"--peer must be one of the contenders; found {args.peer!r}, and {', '.join(args.contenders)}"
        )
    device = choose_device(args.device)
    if device.type == "mps":
        raise ConfigError("--device must be cpu or cuda: the other contenders have no MPS; found 'mps'")
    index = open_index(args.source, label=args.label, cache_dir=args.cache_dir)
    usable = int((index.problem == 0).sum())
    if usable < args.batch_size:
        advice = f"pass --batch-size {usable} or less, or more shards" if usable else "see multimix-pipe verify"
        raise ConfigError(
            f"--batch-size must be at most the number of samples that can be used; found {args.batch_size}, and {usable} of "
            f"{len(index)} samples; {advice}"
        )
    setting = Setting(
        shards=tuple(map(str, index.shards)),
        num_classes=int(index.label.max()) + 1,
        batch_size=args.batch_size,
        k=None,
        threads=threads,
        size=args.size,
        antialias=not args.no_antialias,
        device=str(device),
        label=args.label,
    )
    return [replace(setting, k=k) for k in args.k]
