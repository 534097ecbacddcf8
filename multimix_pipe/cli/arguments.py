"""Arguments and wording that several commands share."""

from __future__ import annotations

import argparse

NO_PROGRESS = "do not show progress on stderr"
"""Help text of --quiet, which every long-running command has."""


def counted(count: int, noun: str) -> str:
    """Return e.g. "1 shard" or "1,200 shards"; `noun` is the singular."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the data: SHARDS, --label and --cache-dir."""
    parser.add_argument("source", metavar="SHARDS", nargs="+", help="path, glob, brace pattern, folder or http(s) URL")
    parser.add_argument(
        "--label",
        default="cls",
        help='where labels come from: "cls" for the .cls file, "json:KEY" for a field of the .json; default: %(default)s',
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where to keep downloaded shards, and the indexes of shards in read-only folders",
    )
