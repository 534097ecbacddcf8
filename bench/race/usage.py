"""CPU time and memory of a process group, from Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def cpu_seconds(group: int) -> float | None:
    """Return the user and system time of all processes of a group and their finished children; None without /proc."""
    if not PROC.is_dir():
        return None
    ticks = sum(sum(map(int, fields[11:15])) for _, fields in _processes(group))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(group: int) -> int | None:
    """Return the resident bytes of all processes of a group, counting shared pages once; None if unknown."""
    total = 0
    for pid, _ in _processes(group):
        try:
            lines = (PROC / pid / "smaps_rollup").read_text().splitlines()
        except OSError:  # the process has ended, or may not be inspected
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total or None


def _processes(group: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the id of each process of a group and its fields of /proc/<id>/stat, from the state on."""
    for entry in os.scandir(PROC) if PROC.is_dir() else ():
        if entry.name.isdecimal():
            try:
                # the command's name, in parentheses, may contain spaces and parentheses
                fields = (PROC / entry.name / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                yield entry.name, fields
