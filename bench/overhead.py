"""What does the host do in a step besides decoding, cropping and mixing? CPU time of each part, as a share of the whole.

    python bench/overhead.py [--shards FOLDER] [--device cuda]

Each part's functions are timed by the CPU clock of the thread that runs them; what is left of the process's CPU time is decoding
and resizing, in DALI's threads or this package's. The first epoch, in which each image's header is checked (dali) or all of it
decoded (torch), and later ones are measured apart, --steps of each. "The kernel" is the loop of reads: the copy out of the page
cache.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from importlib import import_module
from itertools import islice
from typing import Any

from data import an_epoch, chosen_shards, open_backend
from harness import forever, parser, report

WARM_UP = 5

PARTS = {
    "plan": ["multimix_pipe.plan:Plan.step"],
    "reading": [
        "multimix_pipe.runtime.prefetcher:Prefetcher._start",
        "multimix_pipe.runtime.prefetcher:Prefetcher._read_chunk",
    ],
    "reading: the kernel": ["multimix_pipe.shards.compiled:read_rows"],
    "header check": ["multimix_pipe.dali.decode_check:HeaderCheck.problem"],
    "feeding DALI": ["multimix_pipe.dali.graph:Graph.inputs", "nvidia.dali:Pipeline.feed_input"],
    "targets, handing over": ["multimix_pipe.loader.loader:mix_targets", "multimix_pipe.loader.loader:Batch"],
    "mixing": ["multimix_pipe.runtime.mix_stage:HostMixStage.finish", "multimix_pipe.runtime.kernels.host:_mix_pairs"],
}
"""Functions by part, as "module:name" in the module that calls them. Reading calls the kernel and the header check; no other part
calls another one."""
MIXING, READING, KERNEL, HEADERS = "mixing", "reading", "reading: the kernel", "header check"


class Clock:
    """CPU seconds by part, over all threads."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def watch(self, part: str, place: str) -> None:
        """From now on time each call of the function at `place`."""
        module, path = place.split(":")
        *owners, name = path.split(".")
        owner = reduce(getattr, owners, import_module(module))
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
    parts[READING] -= parts[KERNEL] + parts.get(HEADERS, 0.0)
    parts["decoding, resizing"] = whole - sum(parts.values())
    return {name: 1e3 * spent / steps for name, spent in parts.items()}


def show(title: str, parts: dict[str, float]) -> dict[str, object]:
    """Print a table; its figures."""
    whole = sum(parts.values())
    host = whole - parts["decoding, resizing"] - parts.get(MIXING, 0.0)
    print(f"{title}: {whole:.1f} ms of CPU time a step")
    rows = sorted(parts.items(), key=lambda part: -part[1])
    for name, spent in (*rows, ("all but decode, crop, mix", host), ("... nor the kernel", host - parts[KERNEL])):
        print(f"  {name:28} {spent:8.2f} ms {100 * spent / whole:6.2f}%")
    return {"ms_a_step": parts, "host_share": host / whole, "without_kernel": (host - parts[KERNEL]) / whole}


def main() -> None:
    args = parser(__doc__, shards=True, device="cpu", batch_size=64, steps=40).parse_args()
    folder, num_classes = chosen_shards(args.shards)
    options = an_epoch(folder, (args.steps + 2 * WARM_UP) * args.batch_size)
    options |= {"batch_size": args.batch_size, "num_classes": max(num_classes, 1000), "device": args.device}
    clock = Clock()
    for part, places in PARTS.items():
        for place in places:
            clock.watch(part, place)
    results: dict[str, dict[str, object]] = {}
    for backend in ("dali", "torch"):
        with open_backend(backend, **options) as loader:
            batches = forever(loader)
            for _ in islice(batches, WARM_UP):
                pass
            first = shares(batches, clock, args.steps)
            for _ in islice(batches, 2 * WARM_UP):  # to the epoch's end, to which those that run ahead belong, and on
                pass
            later = shares(batches, clock, args.steps)
        setting = f"{backend}, B = {args.batch_size}, K = 5, {args.device}"
        results[backend] = {
            "first_epoch": show(f"{setting}, first epoch", first),
            "later": show(f"{setting}, later epochs", later),
        }
    report(__doc__, results, args.json)


if __name__ == "__main__":
    main()
