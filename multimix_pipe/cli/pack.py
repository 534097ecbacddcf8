"""multimix-pipe pack: convert an image folder or zip into shards."""

from __future__ import annotations

import argparse
import shlex

from multimix_pipe.cli.arguments import add_quiet
from multimix_pipe.errors import counted, printable
from multimix_pipe.shards.pack import pack
from multimix_pipe.shards.pack.layout import TRAIN

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `pack`."""
    parser = subparsers.add_parser(
        "pack",
        help="pack an image folder or zip into WebDataset shards",
        description="Pack images laid out as class/name.jpg into OUT/shard-000000.tar, ... and write OUT/classes.json. If the "
        "source has splits (train/class/name.jpg), each is packed into a folder of its own: OUT/train/train-000000.tar, ... "
        "ImageNet is understood as downloaded (a folder of its tars and devkit) and as Kaggle ships it.",
    )
    parser.add_argument(
        "source", metavar="SRC", help="folder, zip or tar of class/name.jpg (or .jpeg, .png, .webp, ...)"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write the shards to")
    parser.add_argument("--split", help="pack only this split, e.g. train")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names in the order of their ids, one per line, or the classes.json of another set; default: sorted names",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="classes of images in no class folder: a table of file names and classes, LOC_val_solution.csv, or the devkit",
    )
    parser.add_argument(
        "--multilabel",
        action="store_true",
        help="--labels has any number of classes per image: a CSV with lines NAME,CLASS;CLASS or a column of 0 and 1 for each "
        "class, or a JSON of {NAME: [CLASS, ...]}; folders are no classes",
    )
    parser.add_argument(
        "--val", type=float, metavar="FRACTION", help="hold this fraction of each class out as OUT/val, e.g. 0.1"
    )
    parser.add_argument(
        "--samples-per-shard", type=int, default=10_000, metavar="N", help="upper limit; default: %(default)s"
    )
    parser.add_argument(
        "--bytes-per-shard", type=_size, default=2**30, metavar="SIZE", help="upper limit, e.g. 500M; default: 1 GiB"
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, default=0, help="seed of the shuffle before writing; default: %(default)s")
    order.add_argument("--no-shuffle", action="store_true", help="write the images sorted by path")
    parser.add_argument("--max-side", type=int, metavar="PIXELS", help="shrink images whose longest side exceeds this")
    parser.add_argument("--quality", type=int, metavar="Q", help="re-encode every image as a JPEG of this quality")
    parser.add_argument("--workers", type=int, metavar="N", help="number of threads; default: one per usable core")
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Pack the images and print what was written."""
    report = pack(
        args.source,
        args.out,
        split=args.split,
        classes=args.classes,
        labels=args.labels,
        multilabel=args.multilabel,
        val=args.val,
        samples_per_shard=args.samples_per_shard,
        bytes_per_shard=args.bytes_per_shard,
        shuffle_seed=None if args.no_shuffle else args.seed,
        max_side=args.max_side,
        quality=args.quality,
        workers=args.workers,
        progress=not args.quiet,
    )
    print(
        f"{counted(report.samples, 'sample')}, {counted(len(report.shards), 'shard')}, "
        f"{counted(len(report.classes), 'class')}, {report.bytes / 1e6:,.1f} MB in {args.out}"
    )
    if report.skipped:
        count = sum(skipped.files for skipped in report.skipped)
        kinds = (f"{skipped.files:,} {skipped.what} ({printable(skipped.example)})" for skipped in report.skipped)
        print(f"skipped {counted(count, 'file')}: {', '.join(kinds)}")
    if report.kept:
        first = printable(report.kept[0])
        print(f"packed {counted(len(report.kept), 'image')} unchanged, as re-encoding failed; the first is {first}")
    folders = [shard.parent for shard in report.shards]
    folder = next((folder for folder in folders if folder.name.casefold() in TRAIN), folders[0])
    several = " --multilabel" * args.multilabel
    print(f"next: multimix-pipe preview {shlex.quote(str(folder))}{several} -o grid.png")
    return 0


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or (unit and unit not in _UNITS):
        raise argparse.ArgumentTypeError(f"must be a number of bytes, e.g. 500000000, 500M or 2G; found {text!r}")
    return int(number) * _UNITS.get(unit, 1)
