"""multimix-pipe index: build or read the index of shards and summarise it."""

from __future__ import annotations

import argparse

import numpy as np

from multimix_pipe.cli.arguments import add_quiet, add_shards, data_command, data_options
from multimix_pipe.errors import counted
from multimix_pipe.shards.index import Index, open_index


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `index`."""
    parser = subparsers.add_parser(
        "index",
        help="index shards and summarise them",
        description="Build index files that are missing or out of date, as open_loader does, and summarise the data. The exit "
        "status is 1 if no sample can be used.",
    )
    add_shards(parser)
    parser.add_argument("--rebuild", action="store_true", help="rebuild all index files")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes; default: one per usable core")
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Index the shards and print a summary. The exit status is 1 if no sample can be used."""
    index = open_index(
        args.source,
        **data_options(args),
        progress=not args.quiet,
        workers=args.workers,
        rebuild=args.rebuild,
    )
    print(summary(index))
    bad = int(np.count_nonzero(index.problem))
    others = index.other_labels(int(np.flatnonzero(index.problem)[0])) if bad == len(index) else []
    if others:
        print(f"next: multimix-pipe index {data_command(args, label=others[0])}")
    else:
        data = data_command(args)
        print(f"next: multimix-pipe verify {data}" if bad else f"next: multimix-pipe preview {data} -o grid.png")
    return 1 if bad == len(index) else 0


def summary(index: Index) -> str:
    """Return one line with the numbers of samples, shards, classes, bytes and problems."""
    classes = len(index.class_ids)
    problems, bad = [], int(np.count_nonzero(index.problem))
    for code in np.unique(index.problem[index.problem > 0]).tolist():
        ids = np.flatnonzero(index.problem == code)
        problems.append(
            f"{counted(len(ids), 'sample')} where {index.reason(int(ids[0]))} (first: {index.name(int(ids[0]))})"
        )
    return (
        f"{counted(len(index), 'sample')}, {counted(len(index.shards), 'shard')}, {counted(classes, 'class')}, "
        f"{index.size.sum() / 1e6:,.1f} MB of images, {counted(bad, 'problem')}"
        + (f": {'; '.join(problems)}" if problems else "")
    )
