"""How many cores this process may use: its affinity mask, its container's quota, and its share among the local ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from multimix_pipe.shards.launcher import local_world_size


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1: the default number of threads and workers.

    It is the size of the affinity mask or, if less, the CPU quota of its cgroup (version 1 or 2; the minimum over all ancestors,
    rounded up). `root` is the folder with proc/ and sys/.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return max(1, math.ceil(min([cores, *_quotas(root)])))


def share_of_cores(processes: int | None = None) -> int:
    """Return this process's share of the usable cores, at least 1: they are divided by the `processes` on this machine.

    The default is the number in the launcher's environment. If a launcher has bound each process to its own cores, the affinity
    mask is smaller than the parent's and already is the share.
    """
    cores, processes = usable_cores(), local_world_size() or 1 if processes is None else processes
    return cores if processes == 1 or _bound_by_launcher() else max(1, cores // processes)


def _bound_by_launcher() -> bool:
    try:
        return os.sched_getaffinity(0) < os.sched_getaffinity(os.getppid())
    except (AttributeError, OSError):
        return False


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of this process's cgroups and of their ancestors."""
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
            with suppress(OSError, ValueError, ZeroDivisionError):  # no limit at this level
                yield quota(place)
            if place == mount:
                break


def _quota_v2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)  # ValueError for "max": no limit


def _quota_v1(folder: Path) -> float:
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota < 0:
        raise ValueError("no limit")
    return quota / period
