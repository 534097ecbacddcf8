"""How long does planning take? A step at B = 256, and the order of an epoch of ImageNet's size.

python bench/plan.py
"""

from __future__ import annotations

import numpy as np

from harness import in_turn, parser, report, seconds
from multimix_pipe import MultiMix, TrainTransform
from multimix_pipe.config import Shuffle
from multimix_pipe.plan import Plan, Samples

COUNT, SHARDS, BATCH, STEPS = 1_281_167, 1282, 256, 40


def make_plan(mix: MultiMix | None, shuffle: Shuffle = "global") -> Plan:
    numbers = np.arange(COUNT)
    shard = (numbers * SHARDS // COUNT).astype(np.int32)
    side = np.full(COUNT, 500, dtype=np.int32)
    return Plan(Samples(numbers, shard, side, side), TrainTransform(), mix, shuffle, 0, BATCH)


def milliseconds_a_step(plan: Plan) -> float:
    plan.order(0)
    return 1e3 * seconds(lambda: [plan.step(0, at * BATCH, (at + 1) * BATCH) for at in range(STEPS)]) / STEPS


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

    epochs = iter(range(10**6))
    orders = {shuffle: make_plan(None, shuffle) for shuffle in ("global", "window")}
    contenders = {
        shuffle: (lambda plan=plan: seconds(lambda: plan.order(next(epochs)))) for shuffle, plan in orders.items()
    }
    order = in_turn(contenders, unit="s/epoch", peer="global", rounds=args.rounds)
    print(order.table())
    report(__doc__, {"step": steps.summary(), "order": order.summary()}, args.json)


if __name__ == "__main__":
    main()
