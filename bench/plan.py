"""How long does planning take? A step at B = 256, and the first and a later batch of epochs of up to a billion samples.

python bench/plan.py
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np

from harness import in_turn, parser, report, seconds
from multimix_pipe import MultiMix, TrainTransform
from multimix_pipe.config import Shuffle
from multimix_pipe.plan import Plan, Samples
from multimix_pipe.plan.order import Order, global_order

COUNT, SHARDS, BATCH, STEPS = 1_281_167, 1282, 256, 40


def make_plan(mix: MultiMix | None, shuffle: Shuffle = "global") -> Plan:
    numbers = np.arange(COUNT)
    shard = (numbers * SHARDS // COUNT).astype(np.int32)
    side = np.full(COUNT, 500, dtype=np.int32)
    return Plan(Samples(numbers, shard, side, side), TrainTransform(), mix, shuffle, 0, BATCH)


def milliseconds_a_step(plan: Plan) -> float:
    plan.step(0, 0, BATCH)
    return 1e3 * seconds(lambda: [plan.step(0, at * BATCH, (at + 1) * BATCH) for at in range(STEPS)]) / STEPS


def milliseconds_a_batch(order: Order) -> float:
    batches = [np.arange(start, start + BATCH) for start in range(0, STEPS * BATCH, BATCH)]
    return 1e3 * seconds(lambda: [order(positions) for positions in batches]) / STEPS


def kilobytes(make: Callable[[], Order]) -> float:
    """Return what an epoch's order keeps in memory."""
    tracemalloc.start()
    order = make()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del order
    return kept / 1e3


def main() -> None:
    args = parser(__doc__).parse_args()
    mixes = {
        "no mixing": None,
        "alpha=1, iid": MultiMix(),
        "alpha=1, stratified": MultiMix(sampling="stratified"),
        "alpha=0.2, iid": MultiMix(alpha=0.2),
    }
    plans = {name: make_plan(mix) for name, mix in mixes.items()}
    contenders = {name: (lambda plan=plan: milliseconds_a_step(plan)) for name, plan in plans.items()}
    steps = in_turn(contenders, unit="ms/step", peer="no mixing", rounds=args.rounds)
    print(steps.table())

    epochs, positions = iter(range(10**6)), np.arange(BATCH)
    window = make_plan(None, "window")
    makers: dict[str, Callable[[], Order]] = {
        "global, ImageNet": lambda: global_order(COUNT, 0, next(epochs)),
        "global, 20 million": lambda: global_order(20_000_000, 0, next(epochs)),
        "global, a billion": lambda: global_order(10**9, 0, next(epochs)),
        "window, ImageNet": lambda: window.order(next(epochs)),
    }
    contenders = {name: (lambda make=make: 1e3 * seconds(lambda: make()(positions))) for name, make in makers.items()}
    first = in_turn(contenders, unit="ms", peer="global, ImageNet", rounds=args.rounds)
    print(f"An epoch's first batch of {BATCH}", first.table(), sep="\n")
    orders = {name: make() for name, make in makers.items()}
    contenders = {name: (lambda order=order: milliseconds_a_batch(order)) for name, order in orders.items()}
    later = in_turn(contenders, unit="ms", peer="global, ImageNet", rounds=args.rounds)
    print(f"A later batch of {BATCH}", later.table(), sep="\n")
    memory = {name: kilobytes(make) for name, make in makers.items()}
    print("Memory of an epoch's order:", ", ".join(f"{name} {size:,.0f} kB" for name, size in memory.items()))
    results = {"step": steps.summary(), "first batch": first.summary(), "later batch": later.summary(), "kB": memory}
    report(__doc__, results, args.json)


if __name__ == "__main__":
    main()
