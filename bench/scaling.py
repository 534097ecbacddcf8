"""How does the rate grow with the cores? Images per second by number of threads: both backends, a DataLoader, bare threads.

    python bench/scaling.py [--shards FOLDER] [--threads 1 2 4 8 16] [--chart FILE.png]

Each point is a process of its own. This package is measured from its second epoch on, plain and with K = 5. webdataset with
torch's DataLoader (`race/contenders`) has as many worker processes as the others have threads, and does not mix. "bare threads"
decode and resize the windows of the torch backend's plan, from bytes in memory, and do nothing else: the most that Python threads
can give. --images is the length of an epoch, at least. --threads defaults to powers of two up to the usable cores.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path

from data import chosen_shards, open_backend, repeated
from harness import FAINT, OWN_COLOUR, PEER_COLOUR, in_a_new_process, machine_line, parser, report
from multimix_pipe.augment.host import crop_and_resize
from multimix_pipe.native.decode import Decoder
from multimix_pipe.shards import open_index
from multimix_pipe.shards.cores import usable_cores
from race.contenders import CONTENDERS, OURS
from race.setting import Setting

BARE = "bare threads"
PEERS = ("webdataset_pillow", "webdataset_torchvision")
MAX_BARE = 2048
"""Samples that bare threads hold in memory."""


def rates(name: str, setting: Setting, epoch: int, rounds: int, seconds: float) -> list[float]:
    """Images per second of a contender, one per round."""
    multiprocessing.set_start_method(None, force=True)  # the DataLoader's workers start as they do in a user's program
    contender = CONTENDERS[name]
    batches, (each, more) = contender.load()(setting), contender.queued
    ready = -(-epoch // setting.batch_size) if name in OURS else each * setting.threads + more
    for _ in islice(batches, ready):
        pass

    def measure() -> float:
        start, taken = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            next(batches)
            taken += setting.batch_size
        return taken / spent

    return [measure() for _ in range(rounds)]


def bare_rates(setting: Setting, rounds: int, seconds: float) -> list[float]:
    """The same of threads that only decode and resize."""
    options = {"shards": list(setting.shards), "num_classes": setting.num_classes}
    context = open_backend("torch", k=None, **options).context
    plan = context.plan.step(0, 0, min(len(context.index), MAX_BARE))
    encoded = [context.reader.read(sample) for sample in plan.sample.tolist()]
    transform, decoder = context.config.transform, Decoder(context.index)

    def work(rows: count[int], going_on: Callable[[int], bool]) -> int:
        done = 0
        while going_on(row := next(rows)):
            row %= len(encoded)
            window, sample = plan.window[row], int(plan.sample[row])
            image = decoder.decode(sample, encoded[row].copy(), int(window[0] + window[2]))
            crop_and_resize(image, transform, window=window, orientation=1)
            done += 1
        return done

    with ThreadPoolExecutor(setting.threads) as pool:

        def together(going_on: Callable[[int], bool]) -> int:
            rows = count()
            return sum(pool.map(lambda _: work(rows, going_on), range(setting.threads)))

        together(lambda row: row < len(encoded))  # as the loader's first epoch: each image as a whole
        found = []
        for _ in range(rounds):
            start = time.perf_counter()
            done = together(lambda row, stop=start + seconds: time.perf_counter() < stop)  # type: ignore[misc]
            found.append(done / (time.perf_counter() - start))
    return found


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({min(2**power, most) for power in range(most.bit_length() + 1)})


def draw(path: Path, medians: Mapping[str, Mapping[int, float]], subtitle: str) -> None:
    """Write a chart of lines to the picture `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    styles = iter(("-", "--", ":", "-.") * 3)
    for name, points in medians.items():
        colour = FAINT if name == BARE else OWN_COLOUR if name.startswith("multimix") else PEER_COLOUR
        axes.plot([*points], [*points.values()], next(styles), marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    axes.grid(color="#d8d8d8")
    axes.set_xlabel("threads, or worker processes")
    axes.set_ylabel("images/s")
    axes.set_title(f"Images per second by number of threads\n{subtitle}\n{machine_line()}", loc="left", fontsize=10)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser(__doc__, shards=True, batch_size=64, images=6400, seconds=2.0, device="cpu")
    arguments.add_argument("--threads", type=int, nargs="+", default=powers_of_two(usable_cores()), metavar="N")
    arguments.add_argument("--only", nargs="+", metavar="TEXT", help="contenders whose names contain one of these")
    arguments.add_argument("--chart", type=Path, help="draw the figures there too, a PNG")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards = repeated(folder, -(-args.images // len(open_index(folder, progress=False))))
    samples = len(open_index(shards, progress=False))
    setting = Setting(tuple(shards), max(num_classes, 1000), args.batch_size, k=None, threads=1, device=args.device)

    def rounds_of(name: str, k: int | None) -> Callable[[int], list[float]]:
        def measure(threads: int) -> list[float]:
            asked = replace(setting, threads=threads, k=k)
            return in_a_new_process(rates, name, asked, samples, args.rounds, args.seconds)

        return measure

    missing: dict[str, list[str]] = {}
    contenders: dict[str, Callable[[int], list[float]]] = {
        BARE: lambda threads: in_a_new_process(bare_rates, replace(setting, threads=threads), args.rounds, args.seconds)
    }
    for name in (*OURS, *PEERS):
        absent = [module for module in CONTENDERS[name].needs if find_spec(module.partition(".")[0]) is None]
        for k in (None, 5) if name in OURS else (None,):
            title = f"{CONTENDERS[name].title}, {'plain' if k is None else f'K = {k}'}"
            contenders[title] = rounds_of(name, k)
            missing |= {title: absent} if absent else {}
    about = f"B = {args.batch_size}, 224x224 float32, {args.device}, median of {args.rounds}"
    print(f"{about}\nthreads{'':40}" + "".join(f"{threads:9}" for threads in args.threads))
    values: dict[str, dict[int, list[float]]] = {}
    for name, measure in contenders.items():
        if args.only and not any(text in name for text in args.only):
            continue
        print(f"{name:47}", end="", flush=True)
        if name in missing:
            print(f"  missing: {', '.join(missing[name])}")
            continue
        values[name] = {}
        for threads in args.threads:
            values[name][threads] = measure(threads)
            print(f"{statistics.median(values[name][threads]):9,.0f}", end="", flush=True)
        print()
    medians = {name: {n: statistics.median(found) for n, found in points.items()} for name, points in values.items()}
    results = {"images/s": values, "median": medians, "missing": missing, "batch_size": args.batch_size}
    report(__doc__, {**results, "device": args.device}, args.json)
    if args.chart:
        draw(args.chart, medians, about)


if __name__ == "__main__":
    main()
