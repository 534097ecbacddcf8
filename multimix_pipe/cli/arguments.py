"""Arguments and wording that several commands share."""

from __future__ import annotations

import argparse
import shlex
from typing import Any, get_args

from multimix_pipe.config import Backend
from multimix_pipe.errors import redacted


def add_k(parser: argparse.ArgumentParser) -> None:
    """Add --k, the number of interpolations."""
    parser.add_argument("--k", type=int, default=5, help="interpolations per pair; default: %(default)s")


def add_backend(parser: argparse.ArgumentParser, what: str = "what decodes and mixes") -> None:
    """Add --backend; `what` begins its help text."""
    parser.add_argument("--backend", choices=get_args(Backend), default="auto", help=f"{what}; default: %(default)s")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add --quiet, which every long-running command has."""
    parser.add_argument("--quiet", action="store_true", help="do not show progress on stderr")


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the data: SHARDS, where their labels are, and --cache-dir."""
    parser.add_argument("source", metavar="SHARDS", nargs="+", help="path, glob, brace pattern, folder or URL")
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
        "--multilabel",
        action="store_true",
        help="samples may have several labels, as with open_loader(multilabel=True)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="where to keep downloaded shards, and the indexes of shards in read-only folders",
    )


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_shards` parsed, except SHARDS, as arguments of `open_index` and `open_loader`."""
    label = None if args.label == "none" else args.label
    names = ("classes", "label_offset", "multilabel", "cache_dir")
    return {"label": label, **{name: getattr(args, name) for name in names}}


def data_command(args: argparse.Namespace, **changes: Any) -> str:
    """Return what `add_shards` parsed as words of a command line, with options where they are not the defaults."""
    words = [*args.source]
    for name, default in {"label": "cls", "classes": None, "label_offset": 0, "cache_dir": None}.items():
        value = changes.get(name, getattr(args, name))
        if value != default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return redacted(shlex.join([*words, *["--multilabel"] * args.multilabel]))
