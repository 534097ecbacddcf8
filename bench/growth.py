"""Does cost grow linearly in B and in K, and does memory stay flat? Time a pair; resident size over 2,000 steps.

    python bench/growth.py [--shards FOLDER] [--steps 2000]

Memory is that of the process after step 200 and after the last step, one process a backend, and of a data set 100 times as large.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from data import add_shards, chosen_shards, repeated

from multimix_pipe import Batch, MultiMix, open_loader
from multimix_pipe.benchmark.harness import forever, in_turn, parser, rate, report

BACKENDS = ("dali", "torch")
SETTINGS = [(16, 5), (32, 5), (64, 5), (128, 5), (64, 1), (64, 2), (64, 10)]
IMAGES = 640
"""Decoded a measurement."""
SETTLED = 200


def batches_of(shards: list[str], backend: str, batch_size: int, k: int) -> Iterator[Batch]:
    loader = open_loader(
        shards, batch_size=batch_size, num_classes=1000, mix=MultiMix(k=k), backend=backend, device="cpu"
    )
    return forever(loader)


def milliseconds_a_pair(shards: list[str], backend: str, batch_size: int, k: int) -> Callable[[], float]:
    measure = rate(batches_of(shards, backend, batch_size, k), batch_size, IMAGES // batch_size, ahead=4)
    return lambda: 1e3 / measure()


def resident() -> float:
    """MB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def memory(shards: list[str], backend: str, steps: int) -> dict[str, float]:
    """Resident MB as the steps go by, B = 16, K = 5."""
    sizes = {}
    for step, _ in enumerate(islice(batches_of(shards, backend, 16, 5), steps), 1):
        if step in (SETTLED, steps):
            sizes[str(step)] = resident()
    return sizes


def memory_elsewhere(folder: Path, times: int, backend: str, steps: int) -> dict[str, float]:
    """`memory` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--memory",
        backend,
        str(times),
        "--shards",
        str(folder),
        "--steps",
        str(steps),
    ]
    found: dict[str, float] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    return found


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--steps", type=int, default=2000)
    arguments.add_argument(
        "--memory", nargs=2, metavar=("BACKEND", "TIMES"), help="print one process's memory, as JSON"
    )
    args = arguments.parse_args()
    folder, _ = chosen_shards(args.shards)
    if args.memory:
        print(json.dumps(memory(repeated(folder, int(args.memory[1])), args.memory[0], args.steps)))
        return

    shards = repeated(folder, 4)
    contenders = {
        f"{backend}, B = {b}, K = {k}": milliseconds_a_pair(shards, backend, b, k)
        for backend in BACKENDS
        for b, k in SETTINGS
    }
    times = in_turn(contenders, unit="ms a pair", peer="dali, B = 64, K = 5", rounds=args.rounds)
    print(times.table())

    sizes: dict[str, dict[str, float]] = {}
    for backend in BACKENDS:
        sizes[backend] = memory_elsewhere(folder, 1, backend, args.steps)
        print(f"{backend}: {', '.join(f'{size:.0f} MB after step {step}' for step, size in sizes[backend].items())}")
        sizes[f"{backend}, 100 times the data"] = large = memory_elsewhere(folder, 100, backend, SETTLED + 1)
        print(f"{backend}, 100 times the data: {large[str(SETTLED)]:.0f} MB after step {SETTLED}")
    report(__doc__.splitlines()[0], {"time": times.summary(), "resident_mb": sizes}, args.json)


if __name__ == "__main__":
    main()
