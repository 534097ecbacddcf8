"""How long does planning take? A step at B = 256 of ImageNet's 1.28 million samples, and the order of an epoch's first batch.

    python bench/plan.py

An order is computed position by position: that of an epoch's first batch includes all that the epoch needs, for up to a billion
samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np

from harness import in_turn, parser, report, seconds
from multimix_pipe import MultiMix, TrainTransform
from multimix_pipe.config import Shuffle
from multimix_pipe.plan import Plan, Samples
from multimix_pipe.plan.order import global_order

COUNT, SHARDS, BATCH, STEPS = 1_281_167, 1282, 256, 40
MIXES = {
    "no mixing": None,
    "alpha=1, iid": MultiMix(),
    "alpha=1, stratified": MultiMix(sampling="stratified"),
    "alpha=0.2, iid": MultiMix(alpha=0.2),
}


def make_plan(mix: MultiMix | None, shuffle: Shuffle = "global") -> Plan:
    numbers = np.arange(COUNT)
    shard = (numbers * SHARDS // COUNT).astype(np.int32)
    side = np.full(COUNT, 500, dtype=np.int32)
    return Plan(Samples(numbers, shard, side, side), TrainTransform(), mix, shuffle, 0, BATCH)


def milliseconds_a_step(plan: Plan) -> float:
    plan.step(0, 0, BATCH)  # the epoch's order is kept
    return milliseconds(lambda: [plan.step(0, at * BATCH, (at + 1) * BATCH) for at in range(STEPS)]) / STEPS


def milliseconds(work: Callable[[], object]) -> float:
    return 1e3 * seconds(work)


def main() -> None:
    args = parser(__doc__).parse_args()
    contenders: dict[str, Callable[[], float]] = {
        name: partial(milliseconds_a_step, make_plan(mix)) for name, mix in MIXES.items()
    }
    steps = in_turn(contenders, unit="ms/step", peer="no mixing", rounds=args.rounds)
    print(steps.table())

    epochs, positions, window = count(), np.arange(BATCH), make_plan(None, "window")
    orders: dict[str, Callable[[], object]] = {
        "global, ImageNet": lambda: global_order(COUNT, 0, next(epochs))(positions),
        "global, 20 million": lambda: global_order(20_000_000, 0, next(epochs))(positions),
        "global, a billion": lambda: global_order(10**9, 0, next(epochs))(positions),
        "window, ImageNet": lambda: window.order(next(epochs))(positions),
    }
    contenders = {name: partial(milliseconds, order) for name, order in orders.items()}
    first = in_turn(contenders, unit="ms", peer="global, ImageNet", rounds=args.rounds)
    print(f"The order of an epoch's first batch of {BATCH}", first.table(), sep="\n")
    report(__doc__, {"step": steps.summary(), "first batch": first.summary()}, args.json)


if __name__ == "__main__":
    main()
