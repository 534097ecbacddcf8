"""What index.py runs in a fresh process for each round: open an index, then what a loader makes of it, each timed.

python bench/index_opening.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from multimix_pipe import MultiMix, TrainTransform
from multimix_pipe.benchmark.harness import peak_memory
from multimix_pipe.config import LoaderConfig
from multimix_pipe.loader.samples import choose_samples
from multimix_pipe.plan import Plan
from multimix_pipe.shards import open_index

T = TypeVar("T")


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        done = work()
        seconds[name] = time.perf_counter() - start
        return done

    before = resident()
    index = timed("open_index", lambda: open_index(sys.argv[1], progress=False))
    peak = peak_memory() - before
    kept = resident() - before
    config = LoaderConfig(
        batch_size=256,
        num_classes=int(index.label.max()) + 1,
        mix=MultiMix(),
        transform=TrainTransform(),
        shuffle="global",
        last_batch="wrap",
    )
    samples = timed("choose_samples", lambda: choose_samples(index, config))
    plan = Plan(samples, config.transform, config.mix, config.shuffle, config.seed, config.batch_size)
    timed("order of an epoch", lambda: plan.order(0))
    timed("first step", lambda: plan.step(0, 0, 256))
    timed("digests for a state", lambda: (index.fingerprint, samples.digest))
    print(json.dumps({"seconds": seconds, "megabytes": {"at the most": peak / 1e6, "kept": kept / 1e6}}))


if __name__ == "__main__":
    main()
