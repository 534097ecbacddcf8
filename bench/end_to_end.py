"""How many images per second does a loader decode and mix? This package against the loaders that people use today.

    python bench/end_to_end.py [--shards SHARDS ...] [--k 5 1 none] [--device cuda] [--out bench/results]

Contenders take turns, each in its own process. Each image is decoded once and gives the model K rows. Nothing is trained, so the
rates are upper bounds. A contender that is not installed or fails is listed with the reason. With --out, results are written to
OUT/end_to_end-<processor>-<date>.json and .png.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data import generated_shards, repeated
from harness import machine, machine_line, question_of, write_json
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

logger = logging.getLogger("multimix_pipe")


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--shards", nargs="+", help="path, glob, brace pattern, folder or URL; default: generated photos")
    add("--label", default="cls", help="cls, or json:KEY for a field of the .json; default: %(default)s")
    add("--cache-dir", metavar="FOLDER", help="where to keep downloaded shards, and the indexes of read-only shards")
    add("--contenders", nargs="+", metavar="NAME", choices=CONTENDERS, default=list(CONTENDERS),
        help=f"one or more of {', '.join(CONTENDERS)}; default: all")  # fmt: skip
    add("--k", nargs="+", type=_k, default=[5, 1, None], metavar="K",
        help="interpolations per pair, or none; several values are measured in sequence; default: 5 1 none")  # fmt: skip
    add("--together", action="store_true", help="measure all K in the same rounds, all of them in memory at once")
    add("--batch-size", type=int, default=64, metavar="B", help="images per step; default: %(default)s")
    add("--size", type=int, default=224, metavar="PIXELS", help="image size; default: %(default)s")
    add("--no-antialias", action="store_true", help="resize by plain bilinear interpolation")
    add("--device", default="cpu", help="cpu, cuda or cuda:N; default: %(default)s")
    add("--threads", type=int, help="decoding threads or worker processes; default: one per usable core")
    add("--seconds", type=float, default=5.0, help="minimum length of a measurement; default: %(default)s")
    add("--rounds", type=int, default=5, help="measurements of each contender; default: %(default)s")
    add("--limit", type=float, default=120.0, metavar="SECONDS",
        help="give up on a contender that does not respond for this long; default: %(default)s")  # fmt: skip
    add("--peer", metavar="NAME", choices=CONTENDERS,
        help="contender that ratios refer to; default: the faster of this package's backends")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--chart", type=Path, metavar="FILE.png", help="draw a bar chart to this file")
    add("--out", type=Path, metavar="FOLDER", help="write figures and chart to this folder")
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
    threads = share_of_cores() if args.threads is None else args.threads
    check_int("--threads", threads, 1, 1024)
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
    index = open_index(shards, label=args.label, cache_dir=args.cache_dir, progress=False)
    usable = int((index.problem == 0).sum())
    if usable < args.batch_size:
        raise ConfigError(
            f"--batch-size must be at most the number of usable samples, {usable} of {len(index)}; found {args.batch_size}"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and write figures and chart. Returns 1 if no contender could be measured."""
    parser = make_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = settings_of(args)
    except MultiMixError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    contenders = {name: CONTENDERS[name] for name in args.contenders}
    minutes = len(contenders) * len(settings) * (args.rounds + 1) * args.seconds / 60
    logger.info("measuring takes about %.1f minutes, plus the time that the contenders need to start", minutes)
    races = [settings] if args.together else [[setting] for setting in settings]
    rows = [
        row
        for one in races
        for row in race(contenders, one, seconds=args.seconds, rounds=args.rounds, limit=args.limit)
    ]
    setting, question = settings[0], question_of(__doc__).partition("?")[0] + "?"
    about = (
        f"{counted(len(setting.shards), 'shard')}, B = {setting.batch_size}, {setting.size}x{setting.size}, "
        f"{'' if setting.antialias else 'no '}antialias, {setting.dtype} on {setting.device}, "
        f"{counted(setting.threads, 'thread')}; {counted(args.rounds, 'round')} of {args.seconds:g} s"
    )
    print(f"{question}\n{about}\n{machine_line()}\n\n{comparison.table(rows, args.peer)}")
    if args.out:
        described = machine()
        name = re.sub(r"[^a-z0-9]+", "-", str(described.get("gpu", described["cpu"])).lower()).strip("-")
        args.json, args.chart = (args.out / f"end_to_end-{name}-{described['date']}{end}" for end in (".json", ".png"))
    if args.json:
        command = shlex.join(["python", "bench/end_to_end.py", *(sys.argv[1:] if argv is None else argv)])
        asked = {"question": question, "command": command, "rounds": args.rounds, "seconds": args.seconds}
        write_json(args.json, {**asked, **comparison.summary(rows, settings, args.peer)})
    if args.chart:
        comparison.chart(args.chart, question, about, rows, args.peer)
    return 0 if any(row.status == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
