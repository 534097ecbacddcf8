"""Starts other processes, in which this checkout's package and the test helpers can be imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, changed so that `multimix_pipe`, `helpers` and `programs` can be imported."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def program(name: str, *arguments: str) -> list[str]:
    """Return the command that runs `programs.name`, with warnings as errors."""
    return [sys.executable, "-W", "error", "-m", f"programs.{name}", *arguments]


def torchrun(
    processes: int, *command: object, timeout: float = 240, fails: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m` and a module, in processes started by torchrun; all must succeed, unless it `fails`.

    `variables` are added to the environment.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    done = subprocess.run(
        [*map(str, launcher), *map(str, command)],
        env=environment(OMP_NUM_THREADS="1", **variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start `command` with pipes. SIGINT has its default action in it, even if these tests ignore it, as under nohup.

    A new program inherits ignored signals, while signals with a handler are reset to their default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **{"env": environment(), **options}
        )
    finally:
        signal.signal(signal.SIGINT, before)
