"""How tests start other processes: with this checkout's package and `helpers` to import, and as a shell does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, in which `multimix_pipe`, `helpers` and `programs` are importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def program(name: str, *arguments: str) -> list[str]:
    """The command that runs `programs.name`, with warnings as errors."""
    return [sys.executable, "-W", "error", "-m", f"programs.{name}", *arguments]


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start `command` with pipes, as a shell does: Ctrl-C reaches it even where these tests ignore it, as under nohup.

    A signal that is ignored stays ignored in a new program; one that has a handler is at its default there.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **{"env": environment(), **options}
        )
    finally:
        signal.signal(signal.SIGINT, before)
