"""multimix-pipe pack: image folder or zip -> shards."""

from __future__ import annotations

import argparse

from multimix_pipe.cli.arguments import NO_PROGRESS
from multimix_pipe.shards.pack import pack

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `pack`."""
    parser = subparsers.add_parser(
        "pack",
        help="pack an image folder or a zip of one into WebDataset shards",
        description="Pack class/name.jpg into OUT/shard-000000.tar, ... and OUT/classes.json. A source with splits "
        "(train/class/name.jpg) gives OUT/train/train-000000.tar, ... for each.",
    )
    parser.add_argument("source", metavar="SRC", help="folder or zip of class/name.jpg (jpg, jpeg, png, webp)")
    parser.add_argument("out", metavar="OUT", help="folder for the shards")
    parser.add_argument("--split", help="pack only this split, as train")
    parser.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--bytes-per-shard", type=_size, default=2**30, metavar="SIZE", help="as 500M; default: 1 GiB")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, default=0, help="of the shuffle before writing; default: %(default)s")
    order.add_argument("--no-shuffle", action="store_true", help="keep the images sorted by path")
    parser.add_argument("--max-side", type=int, metavar="PIXELS", help="shrink images whose longest side is longer")
    parser.add_argument("--quality", type=int, metavar="Q", help="re-encode every image as JPEG of this quality")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: one a usable core")
    parser.add_argument("--quiet", action="store_true", help=NO_PROGRESS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Pack and say what was written."""
    report = pack(
        args.source,
        args.out,
        split=args.split,
        samples_per_shard=args.samples_per_shard,
        bytes_per_shard=args.bytes_per_shard,
        shuffle_seed=None if args.no_shuffle else args.seed,
        max_side=args.max_side,
        quality=args.quality,
        workers=args.workers,
        progress=not args.quiet,
    )
    print(
        f"{report.samples:,} samples, {len(report.shards):,} shards, {len(report.classes):,} classes, "
        f"{report.bytes / 1e6:,.1f} MB in {args.out}"
    )
    if report.skipped:
        print(f"{report.skipped:,} files are no images in a class folder and were left out")
    if report.kept:
        print(f"{len(report.kept):,} images could not be re-encoded and are packed as they are: {report.kept[0]}, ...")
    return 0


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or (unit and unit not in _UNITS):
        raise argparse.ArgumentTypeError(f"required bytes as 500000000, 500M or 2G; found {text!r}")
    return int(number) * _UNITS.get(unit, 1)
