"""How many cores this process may use: its affinity mask, its container's quota, and its share among the local ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from multimix_pipe.errors import ConfigError


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1: the default number of threads and workers.

    It is the size of the affinity mask, or the CPU quota of its cgroup (version 1 or 2, the least over all ancestors, rounded
    up) if that is less. `root` is where /proc and /sys are looked for.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return max(1, math.ceil(min([cores, *_quotas(root)])))


def share_of_cores() -> int:
    """Return this process's share of the usable cores, at least 1: they are divided by LOCAL_WORLD_SIZE.

    A launcher may have given each process cores of its own; then the affinity mask, which is smaller than the parent's, already
    is the share.
    """
    cores, ranks = usable_cores(), local_world_size()
    return cores if ranks == 1 or _bound_by_launcher() else max(1, cores // ranks)


def local_world_size() -> int:
    """Return the number of processes that a launcher started on this machine: LOCAL_WORLD_SIZE, or 1."""
    value = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not value.isdecimal():
        raise ConfigError(f"the environment variable LOCAL_WORLD_SIZE must be a whole number; found {value!r}")
    return max(1, int(value))


def _bound_by_launcher() -> bool:
    try:
        return os.sched_getaffinity(0) < os.sched_getaffinity(os.getppid())
    except (AttributeError, OSError):
        return False


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the cgroups that this process is in, and of their ancestors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, quota = root / "sys/fs/cgroup" / controllers, _quota_v1
        else:
            continue
        folder = mount / path.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError, ZeroDivisionError):  # no limit is set here
                yield quota(place)
            if place == mount:
                break


def _quota_v2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)  # "max" is no number


def _quota_v1(folder: Path) -> float:
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota < 0:
        raise ValueError("no limit")
    return quota / period
