"""Runs a loader over a folder of hostile shards in a process of its own: a crash ends this one, and memory is its own.

    python -m programs.hostile_epoch FOLDER BACKEND OPTIONS

OPTIONS are those of open_loader, as JSON. The last line on stdout is JSON: the batches, the bad samples, the error that ended the
run if it is one of the family, and by how many bytes the process grew.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from multimix_pipe import EvalTransform, MultiMixError, TrainTransform, open_loader

TRANSFORMS = {"train": TrainTransform(size=16), "eval": EvalTransform(size=16, resize=18)}


def peak_memory() -> int:
    """Most bytes that this process has held at any time. On Linux `ru_maxrss` starts from what the parent held."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(folder: str, backend: str, transform: str = "train", warm: str | None = None, **options: Any) -> dict[str, Any]:
    """One epoch over `folder`, after one over the sound shards in `warm`: what a first epoch costs is not the bombs'."""
    settings = {
        "batch_size": 32,
        "num_classes": 10,
        "transform": TRANSFORMS[transform],
        "backend": backend,
        "device": "cpu",
    }
    settings |= {"num_threads": 2, "rank": 0, "world_size": 1, "shuffle": "none", "last_batch": "partial"} | options
    if warm is not None:
        with open_loader(warm, **settings) as loader:
            for _ in loader:
                pass
    before, batches, bad, error = peak_memory(), 0, {}, None
    try:
        with open_loader(folder, **settings) as loader:
            for batch in loader:
                assert torch.isfinite(batch.images).all(), f"batch {batches} has pixels that are no numbers"
                assert batch.images.abs().max() < 10, f"batch {batches} has pixels out of range"
                batches += 1
            bad = loader.bad_samples
    except MultiMixError as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {"batches": batches, "bad": bad, "error": error, "grown": peak_memory() - before}


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(run(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))))
