"""Does cost grow linearly in B and in K, and does memory stay flat? Time a pair; resident size over 2,000 steps.

    python bench/growth.py [--shards FOLDER] [--steps 2000]

Memory is that of the process after step 200 and after the last step, one process a backend, and of a data set 100 times as large.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from data import chosen_shards, open_backend, repeated
from harness import forever, in_turn, parser, rate, report, resident_memory

BACKENDS = ("dali", "torch")
SETTINGS = [(16, 5), (32, 5), (64, 5), (128, 5), (64, 1), (64, 2), (64, 10)]
IMAGES = 640
"""Decoded in a measurement."""
SETTLED = 200


def milliseconds_a_pair(shards: list[str], backend: str, batch_size: int, k: int) -> Callable[[], float]:
    batches = forever(open_backend(backend, shards=shards, batch_size=batch_size, k=k))
    measure = rate(batches, batch_size, IMAGES // batch_size, ahead=4)
    return lambda: 1e3 / measure()


def memory(shards: list[str], backend: str, steps: int) -> dict[str, float]:
    """Resident MB as the steps go by, B = 16, K = 5."""
    sizes = {}
    for step, _ in enumerate(islice(forever(open_backend(backend, shards=shards, batch_size=16)), steps), 1):
        if step in (SETTLED, steps):
            sizes[str(step)] = resident_memory() / 1e6
    return sizes


def memory_elsewhere(folder: Path, times: int, backend: str, steps: int) -> dict[str, float]:
    """`memory` in a process of its own."""
    asked = ["--memory", backend, str(times), "--shards", str(folder), "--steps", str(steps)]
    done = subprocess.run([sys.executable, __file__, *asked], stdout=subprocess.PIPE, text=True, check=True)
    sizes: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return sizes


def main() -> None:
    arguments = parser(__doc__, shards=True, steps=2000)
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
    report(__doc__, {"time": times.summary(), "resident_mb": sizes}, args.json)


if __name__ == "__main__":
    main()
