"""What a process group uses: CPU time and memory, from Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def cpu_seconds(group: int) -> float | None:
    """CPU time, user and system, of all processes of a group and of their children that ended; None without /proc."""
    if not PROC.is_dir():
        return None
    ticks = sum(sum(map(int, fields[11:15])) for _, fields in _processes(group))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(group: int) -> int | None:
    """Resident memory of all processes of a group; pages that they share count once. None if it cannot be known."""
    total = 0
    for pid, _ in _processes(group):
        try:
            lines = (PROC / pid / "smaps_rollup").read_text().splitlines()
        except OSError:  # it ended, or it is not ours to look into
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total or None


def _processes(group: int) -> Iterator[tuple[str, list[str]]]:
    """Id, and the fields of `stat` from the state on, of each process of a group."""
    for entry in os.scandir(PROC) if PROC.is_dir() else ():
        if entry.name.isdecimal():
            try:
                # the name of the command, in brackets, may hold anything
                fields = (PROC / entry.name / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                yield entry.name, fields
