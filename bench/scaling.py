"""How does the rate grow with the cores? Images per second by number of threads: both backends, a DataLoader, bare threads.

    python bench/scaling.py [--shards FOLDER] [--threads 1 2 4 8 16] [--chart FILE.png]

For each number of threads the contenders race as in `end_to_end.py`: this package, from its second epoch on, plain and K = 5,
and webdataset with torch's DataLoader, which has as many worker processes and does not mix. "bare threads" decode and resize the
windows of the torch backend's plan, from bytes in memory, and do nothing else: the most that Python threads can give. --images is
the length of an epoch, at least. --threads defaults to powers of two up to the usable cores.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

from data import chosen_shards, open_backend, repeated
from harness import in_a_new_process, machine_line, parser, report
from multimix_pipe.augment.host import crop_and_resize
from multimix_pipe.native.decode import Decoder
from multimix_pipe.shards import open_index
from multimix_pipe.shards.cores import usable_cores
from race.contenders import CONTENDERS, OURS
from race.runner import Row, race
from race.setting import Setting

BARE = "bare threads"
PEERS = ("webdataset_pillow", "webdataset_torchvision")
MAX_BARE = 2048
"""Samples that bare threads hold in memory."""
LIMIT = 600.0
"""Seconds that a contender may take for its first epoch."""


def bare_rates(setting: Setting, rounds: int, seconds: float) -> list[float]:
    """Return images per second of threads that only decode and resize, one value per round."""
    context = open_backend("torch", k=None, shards=setting.shards, num_classes=setting.num_classes).context
    plan = context.plan.step(0, 0, min(len(context.index), MAX_BARE))
    encoded = [context.reader.read(sample) for sample in plan.sample.tolist()]
    transform, decoder = context.config.transform, Decoder(context.index)

    def decode(row: int) -> None:
        window, sample = plan.window[row], int(plan.sample[row])
        image = decoder.decode(sample, encoded[row].copy(), int(window[0] + window[2]))
        crop_and_resize(image, transform, window=window, orientation=1)

    def images_until(stop: float) -> int:
        done = 0
        while time.perf_counter() < stop:
            decode(next(rows))
            done += 1
        return done

    rows, found = cycle(range(len(encoded))), []
    with ThreadPoolExecutor(setting.threads) as pool:
        list(pool.map(decode, range(len(encoded))))  # as the loader's first epoch: each image as a whole
        for _ in range(rounds):
            start = time.perf_counter()
            done = sum(pool.map(images_until, repeat(start + seconds, setting.threads)))
            found.append(done / (time.perf_counter() - start))
    return found


def powers_of_two(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    return sorted({min(2**power, most) for power in range(most.bit_length() + 1)})


def draw(path: Path, medians: Mapping[str, Mapping[int, float]], about: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name, points in medians.items():
        axes.plot([*points], [*points.values()], marker="o", label=name)
    axes.set(xlabel="threads, or worker processes", ylabel="images/s")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{about}\n{machine_line()}", loc="left", fontsize=10)
    axes.grid()
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser(__doc__, shards=True, batch_size=64, images=6400, seconds=2.0, device="cpu")
    arguments.add_argument("--threads", type=int, nargs="+", default=powers_of_two(usable_cores()), metavar="N")
    names = (BARE, *OURS, *PEERS)
    arguments.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    arguments.add_argument("--chart", type=Path, help="also draw the medians to this PNG file")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards = repeated(folder, -(-args.images // len(open_index(folder, progress=False))))
    first_epoch = len(open_index(shards, progress=False)) // args.batch_size + 1
    # our first epoch and K = 5 of the others are left out
    ours = {name: replace(CONTENDERS[name], first=first_epoch) for name in OURS}
    peers = {name: replace(CONTENDERS[name], mixes=(None,)) for name in PEERS}
    contenders = {name: contender for name, contender in {**ours, **peers}.items() if name in args.only}
    about = f"Images per second, B = {args.batch_size}, 224x224 float32, {args.device}, median of {args.rounds}"
    print(about)
    results: dict[int, list[dict[str, Any]]] = {}
    medians: dict[str, dict[int, float]] = defaultdict(dict)
    for threads in args.threads:
        setting = Setting(shards, num_classes, args.batch_size, k=None, threads=threads, device=args.device)
        rows = race(contenders, [setting, replace(setting, k=5)], seconds=args.seconds, rounds=args.rounds, limit=LIMIT)
        if BARE in args.only:
            bare = in_a_new_process(bare_rates, setting, args.rounds, args.seconds)
            rows.insert(0, Row(BARE, BARE, None, rates=bare))
        rows = [row for row in rows if row.status != "cannot"]
        results[threads] = [asdict(row) for row in rows]
        for row in rows:
            title = f"{row.title}, {'plain' if row.k is None else f'K = {row.k}'}"
            if row.rates:
                medians[title][threads] = row.rate
            found = f"{row.rate:9,.0f}" if row.rates else f"{row.status}: {row.message}"
            print(f"{threads:3} threads  {title:48} {found}", flush=True)
    settings = {"batch_size": args.batch_size, "device": args.device}
    report(__doc__, {**settings, "rows": results, "median": medians}, args.json)
    if args.chart:
        draw(args.chart, medians, about)


if __name__ == "__main__":
    main()
