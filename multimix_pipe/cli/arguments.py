"""Arguments and wording that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from multimix_pipe.errors import counted

__all__ = ["NO_PROGRESS", "add_shards", "counted", "data_options"]

NO_PROGRESS = "do not show progress on stderr"
"""Help text of --quiet, which every long-running command has."""


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the data: SHARDS, --label and --cache-dir."""
    parser.add_argument("source", metavar="SHARDS", nargs="+", help="path, glob, brace pattern, folder or http(s) URL")
    parser.add_argument(
        "--label",
        default="cls",
        help='where labels come from: "cls" or "txt" for the member of that extension, "json:KEY" for a field of the .json, '
        '"folder" for the folder in the key, "none" for no labels; default: %(default)s',
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names in the order of their ids, one per line, or a classes.json; default: classes.json beside the shards",
    )
    parser.add_argument(
        "--label-offset",
        type=int,
        default=0,
        metavar="N",
        help="subtract N from labels that are numbers, e.g. 1 for 1..1000",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where to keep downloaded shards, and the indexes of shards in read-only folders",
    )


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_shards` parsed, except SHARDS, as arguments of `open_index` and `open_loader`."""
    label = None if args.label == "none" else args.label
    return {"label": label, "classes": args.classes, "label_offset": args.label_offset, "cache_dir": args.cache_dir}
