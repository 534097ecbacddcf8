"""Does cost grow linearly in B and in K, and does memory stay flat? Time per pair; resident memory over 2,000 steps.

    python bench/growth.py [--shards FOLDER] [--steps 2000]

Memory is measured after step 200 and after the last step, in one process per backend, and also on 100 times as much data.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from data import chosen_shards, open_backend, repeated
from harness import forever, in_a_new_process, in_turn, parser, rate, report, resident_memory

BACKENDS = ("dali", "torch")
SETTINGS = [(16, 5), (32, 5), (64, 5), (128, 5), (64, 1), (64, 2), (64, 10)]
IMAGES = 640
"""Images decoded per measurement."""
SETTLED = 200
"""Step after which memory should no longer grow."""


def milliseconds_a_pair(shards: list[str], backend: str, batch_size: int, k: int) -> Callable[[], float]:
    batches = forever(open_backend(backend, shards=shards, batch_size=batch_size, k=k))
    measure = rate(batches, batch_size, IMAGES // batch_size, ahead=4)
    return lambda: 1e3 / measure()


def memory(folder: Path, times: int, backend: str, steps: int) -> dict[str, float]:
    """Return the resident MB after step SETTLED and after the last step, at B = 16, K = 5, on the shards `times` times over."""
    batches = forever(open_backend(backend, shards=repeated(folder, times), batch_size=16))
    sizes = {}
    for step, _ in enumerate(islice(batches, steps), 1):
        if step in (SETTLED, steps):
            sizes[str(step)] = resident_memory() / 1e6
    return sizes


def main() -> None:
    args = parser(__doc__, shards=True, steps=2000).parse_args()
    folder, _ = chosen_shards(args.shards)
    shards = repeated(folder, 4)
    contenders = {
        f"{backend}, B = {b}, K = {k}": milliseconds_a_pair(shards, backend, b, k)
        for backend in BACKENDS
        for b, k in SETTINGS
    }
    times = in_turn(contenders, unit="ms/pair", peer="dali, B = 64, K = 5", rounds=args.rounds)
    print(times.table())

    sizes: dict[str, dict[str, float]] = {}
    for backend in BACKENDS:
        sizes[backend] = in_a_new_process(memory, folder, 1, backend, args.steps)
        print(f"{backend}: {', '.join(f'{size:.0f} MB after step {step}' for step, size in sizes[backend].items())}")
        sizes[f"{backend}, 100 times the data"] = large = in_a_new_process(memory, folder, 100, backend, SETTLED + 1)
        print(f"{backend}, 100 times the data: {large[str(SETTLED)]:.0f} MB after step {SETTLED}")
    report(__doc__, {"time": times.summary(), "resident_mb": sizes}, args.json)


if __name__ == "__main__":
    main()
