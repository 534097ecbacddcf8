"""Runs a loader over a folder of hostile shards in a process of its own: a crash ends this one, and memory is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from multimix_pipe import EvalTransform, MultiMixError, TrainTransform, open_loader

TRANSFORMS = {"train": TrainTransform(size=16), "eval": EvalTransform(size=16, resize=18)}


def main(
    folder: str, backend: str, transform: str = "train", warm: str | None = None, **options: Any
) -> dict[str, Any]:
    """Run an epoch over `folder`, after one over the sound shards in `warm`: what a first epoch costs is not the bombs'.

    Returns the number of batches, the bad samples, the package's error that ended the run, and by how many bytes the
    process grew.
    """
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


def peak_memory() -> int:
    """Bytes that this process held at most."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
