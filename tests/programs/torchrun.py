"""What each process of tests/test_torchrun.py runs: `torchrun ... -m programs.torchrun grid|early FOLDER`.

FOLDER holds folders of shards, named SAMPLES-SHARDS. Results go to FOLDER/MODE-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from helpers.backends import BACKENDS, dali_missing
from helpers.samples import CLASSES, TINY
from multimix_pipe import open_loader

LIMIT = timedelta(seconds=60)
"""For which a collective waits, in the grid: steps that differ are an error after that."""
EARLY_LIMIT = timedelta(seconds=3)
ALARM = 450
"""Seconds after which a process ends by itself."""
BATCH_SIZES = (1, 3, 8)
LAST_BATCHES = ("wrap", "drop", "partial")
SHUFFLES = ("global", "window", "none")
SETTINGS: dict[str, Any] = {"num_classes": CLASSES, "transform": TINY, "mix": None, "device": "cpu", "num_threads": 1}


def grid(folder: Path) -> list[dict[str, Any]]:
    """Walk all configurations together; what this process was shown in each.

    Groups of 1, 2 and 3 of the processes are worlds of their own; the whole is found by the loader itself.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = {size: dist.new_group(list(range(size)), timeout=LIMIT) for size in range(1, world + 1)}
    backends = BACKENDS if dali_missing() is None else ("torch",)
    found = []
    for number, (data, batch_size, last_batch, size) in enumerate(
        product(sorted(folder.glob("*-*/")), BATCH_SIZES, LAST_BATCHES, groups)
    ):
        if rank >= size:
            continue
        place = {} if size == world else {"rank": rank, "world_size": size}
        backend, shuffle = backends[number % len(backends)], SHUFFLES[number // 2 % len(SHUFFLES)]
        kind = {"backend": backend, "shuffle": shuffle, "last_batch": last_batch, "batch_size": batch_size}
        with open_loader(data, **SETTINGS, **kind, **place) as loader:
            steps = []
            for batch in loader:
                steps.append(batch.keys)
                if last_batch != "partial":  # where steps may differ by one nobody waits for anybody
                    together = torch.ones(1)
                    dist.all_reduce(together, group=groups[size])
                    assert together.item() == size
            dist.barrier(group=groups[size])
            case = {"data": data.name, "processes": size, "len": len(loader), "steps": steps}
            found.append(case | kind)
    return found


def early(folder: Path) -> dict[str, Any]:
    """Process 1 stops after three steps: it stays away for too long, then it exits. What process 0 has of that."""
    rank = dist.get_rank()
    groups = {how: dist.new_group([0, 1], timeout=EARLY_LIMIT) for how in ("stays away", "exits")}
    found: dict[str, Any] = {}
    for how, group in groups.items():
        loader = open_loader(folder / "64-4", batch_size=2, **SETTINGS)
        found[how] = {"steps": 0}
        iterator = iter(loader)
        taken = [next(iterator)]
        dist.barrier()  # with the default group's limit: what follows waits for nobody's start
        started = 0.0
        try:
            for step, _ in enumerate(chain(taken, iterator), start=1):
                if rank == 1 and step == 4:
                    break
                started = time.monotonic()
                dist.all_reduce(torch.ones(1), group=group)
                found[how]["steps"] = step
        except RuntimeError as error:
            found[how] |= {"error": str(error), "seconds": time.monotonic() - started}
            assert loader.state_dict()["steps"] == 4
        if rank == 1 and how == "stays away":
            wait_for(folder / "told")
        loader.close()
        names = [thread.name for thread in threading.enumerate()]
        found[how]["threads left"] = [name for name in names if name.startswith("multimix")]
        if rank == 0:
            (folder / "told").touch()
    return found


def wait_for(file: Path) -> None:
    late = time.monotonic() + 2 * LIMIT.total_seconds()
    while not file.exists():
        assert time.monotonic() < late
        time.sleep(0.01)


if __name__ == "__main__":
    signal.alarm(ALARM)
    mode, where = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo", timeout=LIMIT)
    result = grid(where) if mode == "grid" else early(where)
    (where / f"{mode}-{os.environ['RANK']}.json").write_text(json.dumps(result))
    if mode == "grid":
        dist.destroy_process_group()
