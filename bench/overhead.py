"""What does the host do in a step besides decoding, cropping and mixing? CPU time of each part, as a share of the whole.

    python bench/overhead.py [--shards FOLDER] [--device cuda]

Each part's functions are timed by the CPU clock of the thread that runs them; what is left of the process's CPU time is decoding
and resizing, in DALI's threads or this package's. The first epoch, in which each image's header is checked (dali) or all of it
decoded (torch), and later ones are measured apart. "The kernel" is what `preadv` takes: the copy out of the page cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any

from data import add_shards, an_epoch, chosen_shards

from multimix_pipe import MultiMix, open_loader
from multimix_pipe.benchmark.harness import forever, parser, report
from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.loader import Loader
from multimix_pipe.plan import Plan
from multimix_pipe.runtime.kernels import fused
from multimix_pipe.runtime.mix_stage import HostMixStage
from multimix_pipe.runtime.prefetcher import Prefetcher
from multimix_pipe.shards.reader import ShardReader

WARM_UP = 5

PARTS: dict[str, list[tuple[type | ModuleType, str]]] = {
    "plan": [(Plan, "step")],
    "reading": [(Prefetcher, "start"), (ShardReader, "read")],
    "reading: the kernel": [(os, "preadv")],
    "header check": [(DaliExecutor, "_problem")],
    "feeding DALI": [(DaliExecutor, "_feed_inputs")],
    "targets, handing over": [(Loader, "_batch")],
    "mixing": [(HostMixStage, "finish"), (fused, "mix_pairs")],
}
MIXING, READING, KERNEL = "mixing", "reading", "reading: the kernel"


class Clock:
    """CPU seconds by part, over all threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def watch(self, part: str, owner: type | ModuleType, name: str) -> None:
        """From now on time each call of owner.name."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **named)
            finally:
                spent = time.thread_time() - start
                with self._lock:
                    self.seconds[part] += spent

        setattr(owner, name, timed)


def shares(batches: Iterator[object], clock: Clock, steps: int) -> dict[str, float]:
    """CPU milliseconds of each part in a step."""
    clock.seconds.clear()
    start = time.process_time()
    for _ in islice(batches, steps):
        pass
    whole = time.process_time() - start
    parts = {name: clock.seconds[name] for name in PARTS if clock.seconds[name]}
    parts[READING] -= parts[KERNEL]
    parts["decoding, resizing"] = whole - sum(parts.values())
    return {name: 1e3 * spent / steps for name, spent in parts.items()}


def show(title: str, parts: dict[str, float]) -> dict[str, object]:
    """Print a table; its figures."""
    whole = sum(parts.values())
    host = whole - parts["decoding, resizing"] - parts.get(MIXING, 0.0)
    print(f"{title}: {whole:.1f} ms of CPU time a step")
    for name, spent in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {name:28} {spent:8.2f} ms {100 * spent / whole:6.2f}%")
    for name, spent in (("all but decode, crop, mix", host), ("... nor the kernel", host - parts[KERNEL])):
        print(f"  {name:28} {spent:8.2f} ms {100 * spent / whole:6.2f}%")
    return {"ms_a_step": parts, "host_share": host / whole, "without_kernel": (host - parts[KERNEL]) / whole}


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=40, help="that are measured in each of two epochs")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    epoch = an_epoch(folder, (args.steps + 2 * WARM_UP) * args.batch_size)
    clock = Clock()
    for part, functions in PARTS.items():
        for owner, name in functions:
            clock.watch(part, owner, name)
    results: dict[str, dict[str, object]] = {}
    for backend in ("dali", "torch"):
        with open_loader(
            **epoch,
            batch_size=args.batch_size,
            num_classes=max(num_classes, 1000),
            mix=MultiMix(k=5),
            backend=backend,
            device=args.device,
        ) as loader:
            batches = forever(loader)
            for _ in islice(batches, WARM_UP):
                pass
            first = shares(batches, clock, args.steps)
            for _ in islice(batches, 2 * WARM_UP):  # to the epoch's end, which those that run ahead are of, and on
                pass
            later = shares(batches, clock, args.steps)
        setting = f"{backend}, B = {args.batch_size}, K = 5, {args.device}"
        results[backend] = {
            "first_epoch": show(f"{setting}, first epoch", first),
            "later": show(f"{setting}, later epochs", later),
        }
    report(__doc__.splitlines()[0], results, args.json)


if __name__ == "__main__":
    main()
