"""How tests start other processes: with this checkout's package and `helpers` to import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, in which `multimix_pipe`, `helpers` and `programs` are importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def program(name: str, *arguments: str) -> list[str]:
    """The command that runs `programs.name`, with warnings as errors."""
    return [sys.executable, "-W", "error", "-m", f"programs.{name}", *arguments]
