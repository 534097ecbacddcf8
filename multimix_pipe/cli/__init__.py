"""The command `multimix-pipe`. Each subcommand is a module with `register(subparsers)` and `run(args) -> exit status`."""

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
from multimix_pipe.errors import redacted

PROGRAM = "multimix-pipe"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status, or 2 after a usage error, 130 after an interrupt.

    Every error that the user can fix is reported in one line on stderr; --verbose prints the traceback before it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser().parse_args(argv)
        args.command_line = redacted(shlex.join([PROGRAM, *argv]))
    except SystemExit as leave:  # --help, --version, or a wrong argument
        return leave.code if isinstance(leave.code, int) else 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        # sample keys need not be UTF-8; line buffering keeps a log's lines in order and complete after an interrupt
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
        # the reader, e.g. `head`, has closed the pipe: there is nobody to report to, and the flush at exit must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MultiMixError, OSError) as error:
        if args.verbose:
            logging.getLogger("multimix_pipe").debug("traceback of the error below:", exc_info=True)
        print(f"{PROGRAM}: error: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, without argparse's usage message before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    # registering a command must stay cheap: each command imports what it needs when it runs
    from multimix_pipe.cli import bench, doctor, evaluate, index, pack, preview, report, verify
    from multimix_pipe.cli.demo import command as demo

    parser = _Parser(
        prog=PROGRAM,
        description="A fast, exactly resumable image-classification loader for WebDataset shards, with mixup and "
        "multi-mix built in.",
        epilog=f"Run `{PROGRAM} COMMAND --help` for the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, pack, index, verify, preview, report, evaluate, bench, doctor):
        command.register(subparsers)
    # --verbose is accepted both before and after the command
    for accepting, default in ((parser, False), *((sub, argparse.SUPPRESS) for sub in subparsers.choices.values())):
        accepting.add_argument(
            "-v", "--verbose", action="store_true", default=default, help="log more, and show tracebacks"
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
    """A handler that writes log lines to stderr above any progress bar, each line once: commands open several loaders."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        line = self.format(record)
        if line not in self._written:
            self._written.add(line)
            tqdm.write(line, file=sys.stderr)
