"""The command `multimix-pipe`: a module for each subcommand, with `register(subparsers)` and `run(args) -> exit status`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from multimix_pipe import MultiMixError, __version__

PROGRAM = "multimix-pipe"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns 0, what the subcommand returns, 2 for what cannot work, 130 after an interrupt.

    Every failure that a user can mend is one line on stderr; with --verbose a traceback precedes it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser().parse_args(argv)
        args.command_line = shlex.join([PROGRAM, *argv])
    except SystemExit as leave:  # --help, --version, or a wrong argument
        return leave.code if isinstance(leave.code, int) else 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        # keys of samples need not be UTF-8; in a log, lines stand in their order, and an interrupt loses none
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        with _log_to_stderr(logging.DEBUG if args.verbose else logging.INFO):
            return _run(args)
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    try:
        status: int = args.func(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader of a pipe is gone, as `head` is: nothing to tell, and the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MultiMixError, OSError) as error:
        if args.verbose:
            logging.getLogger("multimix_pipe").debug("the error in full", exc_info=True)
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; argparse puts the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    # what registers a command imports little; what a command needs to run is imported when it runs
    from multimix_pipe.cli import bench, doctor, index, pack, preview, verify
    from multimix_pipe.cli.demo import command as demo

    parser = _Parser(
        prog=PROGRAM,
        description="WebDataset shards in, ready mixed batches out: K ordered interpolations of each pair of images.",
        epilog=f"`{PROGRAM} COMMAND --help` tells more of one command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, pack, index, verify, preview, bench, doctor):
        command.register(subparsers)
    for either_side, default in ((parser, False), *((sub, argparse.SUPPRESS) for sub in subparsers.choices.values())):
        either_side.add_argument(
            "-v", "--verbose", action="store_true", default=default, help="log more, and tell errors in full"
        )
    return parser


@contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    logger = logging.getLogger("multimix_pipe")
    before, handler = logger.level, _AboveProgressBars()
    handler.setFormatter(logging.Formatter(f"{PROGRAM}: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _AboveProgressBars(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar that is drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
