"""multimix-pipe verify: read and decode every sample once."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from multimix_pipe.cli.arguments import NO_PROGRESS, add_shards
from multimix_pipe.errors import ConfigError, printable
from multimix_pipe.runtime.machine import package_versions

if TYPE_CHECKING:
    from multimix_pipe.verify import BadSample, BadShard, VerifyReport

STDOUT = "-"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="read and decode every sample, list the bad ones",
        description="Read and decode every sample in full, by what training decodes it with, and list what is bad as it is "
        "found. Shards that are missing or damaged are listed too, and the others verified. Exit status 0 where all is good, 1 "
        "where anything is bad, 2 for what cannot be done, 130 after an interrupt.",
    )
    add_shards(parser)
    parser.add_argument(
        "--backend",
        choices=("auto", "dali", "torch"),
        default="auto",
        help="whose decoder judges, as in open_loader; default: DALI's where it imports, else that of the torch backend",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout, and nothing else on it")
    parser.add_argument(
        "--write-bad", metavar="FILE", help="write the bad samples, one a line, for open_loader(exclude=FILE)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: one a usable core")
    parser.add_argument("--quiet", action="store_true", help=NO_PROGRESS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Verify, list what is bad, write the reports."""
    from multimix_pipe.verify import verify

    for option, name in (("--json", args.json), ("--write-bad", args.write_bad)):
        if name not in (None, STDOUT):  # now, not after an hour of decoding
            _check_writable(option, Path(name))
    if args.write_bad and args.write_bad in (STDOUT, args.json):
        raise ConfigError(f"--write-bad must name a file of its own; found {args.write_bad!r}")
    tells = args.json != STDOUT
    report = verify(
        args.source,
        label=args.label,
        cache_dir=args.cache_dir,
        backend=args.backend,
        workers=args.workers,
        progress=not args.quiet,
        found=_tell if tells else lambda bad: None,
    )
    if tells:
        print(summary(report))
    if args.write_bad:
        names = [sample.name for sample in report.bad if "\n" not in sample.name]  # a line cannot hold it
        _write("--write-bad", args.write_bad, "".join(name + "\n" for name in names))
        if left := len(report.bad) - len(names):
            print(
                f"{left} bad samples have a line end in their names, and are not in {args.write_bad}", file=sys.stderr
            )
    if args.json:
        text = json.dumps(as_json(report), indent=1) + "\n"
        if tells:
            _write("--json", args.json, text)
        else:
            print(text, end="")
    return 1 if report.bad or report.bad_shards else 0


def counts(report: VerifyReport) -> dict[str, int]:
    """How many samples are bad for which reason, the most frequent first; numbers in reasons are left out."""
    return dict(Counter(re.sub(r"\d[\d,]*", "N", sample.reason) for sample in report.bad).most_common())


def summary(report: VerifyReport) -> str:
    """What was verified and how much of it is bad, and a line for each reason."""
    shards = f" in {report.shards:,} shards" + (
        f"; {len(report.bad_shards):,} more shards are missing or damaged" if report.bad_shards else ""
    )
    lines = [f"{report.samples:,} samples, {len(report.bad):,} bad{shards}; decoded by the {report.backend} backend"]
    return "\n".join([*lines, *(f"{count:8,}  {reason}" for reason, count in counts(report).items())])


def as_json(report: VerifyReport) -> dict[str, Any]:
    """The report with the versions of what made it."""
    return {
        "backend": report.backend,
        "samples": report.samples,
        "shards": report.shards,
        "without_image": report.without_image,
        "bad": [{"shard": sample.shard, "key": sample.key, "reason": sample.reason} for sample in report.bad],
        "bad_shards": [{"shard": shard.shard, "reason": shard.reason} for shard in report.bad_shards],
        "reasons": counts(report),
        "versions": {"python": platform.python_version(), **package_versions()},
    }


def _tell(bad: BadSample | BadShard) -> None:
    tqdm.write(f"{printable(getattr(bad, 'name', bad.shard))}: {bad.reason}")


def _check_writable(option: str, path: Path) -> None:
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{option} must name a file that can be written; found {str(path)!r}")


def _write(option: str, name: str, text: str) -> None:
    try:
        Path(name).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{option} must name a file that can be written: {error}") from error
