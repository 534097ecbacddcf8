"""Arguments that several commands take."""

from __future__ import annotations

import argparse

NO_PROGRESS = "show no progress on stderr"
"""Help of --quiet, in every command with long work."""


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Which shards, and what of them: SHARDS, --label and --cache-dir."""
    parser.add_argument("source", metavar="SHARDS", nargs="+", help="path, glob, brace pattern, folder or http(s) URL")
    parser.add_argument(
        "--label", default="cls", help="cls, or json:KEY for a field of the .json; default: %(default)s"
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="for shards from URLs, and for indices of shards whose folder cannot be written",
    )
