"""multimix-pipe verify: read and decode every sample once."""

from __future__ import annotations

import argparse
from pathlib import Path

from multimix_pipe.cli.arguments import add_shards
from multimix_pipe.errors import ConfigError
from multimix_pipe.shards.verify import verify


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="read and decode every sample, list the bad ones",
        description="Read and decode every sample once. Exit status 1 if any is bad.",
    )
    add_shards(parser)
    parser.add_argument(
        "--write-bad", metavar="FILE", help="write the bad samples, one a line, for open_loader(exclude=FILE)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: one a usable core")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Verify and list what is bad."""
    report = verify(
        args.source, label=args.label, cache_dir=args.cache_dir, workers=args.workers, progress=not args.quiet
    )
    for sample in report.bad:
        print(f"{sample.name}: {sample.reason}")
    print(f"{report.samples:,} samples, {len(report.bad):,} bad")
    if args.write_bad:
        try:
            Path(args.write_bad).write_text(
                "".join(sample.name + "\n" for sample in report.bad), encoding="utf-8", errors="surrogateescape"
            )
        except OSError as error:
            raise ConfigError(f"--write-bad must name a file that can be written: {error}") from error
    return 1 if report.bad else 0
