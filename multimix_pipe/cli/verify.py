"""multimix-pipe verify: read and decode every sample once and list the bad ones."""

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

from multimix_pipe.cli.arguments import add_quiet, add_shards, data_options
from multimix_pipe.errors import ConfigError, counted, printable
from multimix_pipe.runtime.machine import package_versions

if TYPE_CHECKING:
    from multimix_pipe.verify import BadSample, BadShard, VerifyReport

STDOUT = "-"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="decode every sample and list the bad ones",
        description="Read and decode every sample in full, with the decoder that training uses, and list bad samples as they "
        "are found. Missing and damaged shards are listed too, and the rest are verified. The exit status is 0 if everything "
        "is good, 1 if anything is bad, 2 after a usage or other error, and 130 after an interrupt.",
    )
    add_shards(parser)
    parser.add_argument(
        "--backend",
        choices=("auto", "dali", "torch"),
        default="auto",
        help="backend whose decoder to use; default: auto, which selects DALI if it is installed, else torch",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - prints it, and nothing else, to stdout"
    )
    parser.add_argument(
        "--write-bad", metavar="FILE", help="write the bad samples, one per line, for open_loader(exclude=FILE)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="number of threads; default: one per usable core")
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Verify the shards, list what is bad and write the reports."""
    from multimix_pipe.verify import verify

    for option, name in (("--json", args.json), ("--write-bad", args.write_bad)):
        if name not in (None, STDOUT):  # fail now rather than after an hour of decoding
            _check_writable(option, Path(name))
    if args.write_bad and args.write_bad in (STDOUT, args.json):
        raise ConfigError(f"--write-bad must name a file of its own; found {args.write_bad!r}")
    prints_list = args.json != STDOUT
    report = verify(
        args.source,
        **data_options(args),
        backend=args.backend,
        workers=args.workers,
        progress=not args.quiet,
        found=_print_bad if prints_list else lambda bad: None,
    )
    if prints_list:
        print(summary(report))
    if args.write_bad:
        names = [
            sample.name for sample in report.bad if "\n" not in sample.name
        ]  # such a name does not fit on one line
        _write("--write-bad", args.write_bad, "".join(name + "\n" for name in names))
        if left := len(report.bad) - len(names):
            print(f"left out of {args.write_bad}: {counted(left, 'name')} with a line break", file=sys.stderr)
    elif report.bad and prints_list:
        print("next: rerun with --write-bad FILE and train with open_loader(exclude=FILE)")
    if report.bad_shards and prints_list:
        print('next: complete the data as listed, or use what is there with open_loader(on_bad_sample="replace")')
    if args.json:
        text = json.dumps(as_json(report), indent=1) + "\n"
        if prints_list:
            _write("--json", args.json, text)
        else:
            print(text, end="")
    return 1 if report.bad or report.bad_shards else 0


def counts(report: VerifyReport) -> dict[str, int]:
    """Count the bad samples by reason, most frequent first; reasons that differ only in numbers count as one."""
    return dict(Counter(re.sub(r"\d[\d,]*", "N", sample.reason) for sample in report.bad).most_common())


def summary(report: VerifyReport) -> str:
    """Summarise what was verified and how much of it is bad, with one line per reason."""
    folders = sum(shard.is_folder for shard in report.bad_shards)
    others = len(report.bad_shards) - folders
    shards = (
        f" in {counted(report.shards, 'shard')}"
        + (f"; {counted(others, 'more shard')} missing or damaged" if others else "")
        + (f"; {counted(folders, 'folder')} incomplete" if folders else "")
    )
    samples = f"{counted(report.samples, 'sample')}, {len(report.bad):,} bad"
    lines = [f"{samples}{shards}; decoded by the {report.backend} backend"]
    return "\n".join([*lines, *(f"{count:8,}  {reason}" for reason, count in counts(report).items())])


def as_json(report: VerifyReport) -> dict[str, Any]:
    """Return the report as JSON-ready data, with the versions of the packages used."""
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


def _print_bad(bad: BadSample | BadShard) -> None:
    tqdm.write(f"{printable(getattr(bad, 'name', bad.shard))}: {bad.reason}")


def _check_writable(option: str, path: Path) -> None:
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{option} must name a writable file; found {str(path)!r}")


def _write(option: str, name: str, text: str) -> None:
    try:
        Path(name).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{option} must name a writable file: {error}") from error
