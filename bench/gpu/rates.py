"""How many pairs per second does the pipeline hand out on a GPU, with K = 5 and without mixing, next to DALI's own pipeline?

    python bench/gpu/rates.py --device cuda [--shards FOLDER] [--torch 1]

"stage behind the graph" decodes and resizes in DALI and mixes with torch's operations; "DALI's classification pipeline" is the
one of the race (`readers.webdataset`, a random window, resize, mirror, normalise), without mixing. Each is measured at every
--prefetch, and compared at its best. The targets: 0.95 of DALI's pipeline without mixing, and 0.75 of that with K = 5. A round is
--steps batches; --repeat is how often an epoch reads the shards; --threads 0 is the loader's default, and all cores for the peer.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import chosen_shards, open_backend, repeated
from harness import forever, in_turn, parser, rate, report
from multimix_pipe import Loader, TrainTransform
from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.shards.cores import usable_cores
from race.contenders import dali_reader
from race.setting import Setting

PEER = "DALI's classification pipeline"


def title(k: int | None) -> str:
    """The words for a number of interpolations."""
    return "no mixing" if k is None else f"K={k}"


def main() -> None:
    arguments = parser(
        __doc__, shards=True, device="cuda", batch_size=256, size=224, repeat=256, steps=50, threads=0, torch=0
    )
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments.add_argument("--prefetch", type=int, nargs="+", default=[2, 5], help="default: %(default)s")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards, device, threads = repeated(folder, args.repeat), torch.device(args.device), args.threads or usable_cores()
    options = {"shards": shards, "batch_size": args.batch_size, "num_classes": num_classes, "device": args.device}
    options |= {"transform": TrainTransform(size=args.size), "dtype": args.dtype, "last_batch": "wrap"}
    options |= {"num_threads": args.threads or None}
    setting = Setting(
        shards, num_classes, args.batch_size, k=None, threads=threads, size=args.size, device=str(device),
        dtype="float32" if args.dtype == "bfloat16" else args.dtype,
    )  # fmt: skip

    def measured(batches: Iterator[object], prefetch: int) -> Callable[[], float]:
        return rate(batches, args.batch_size, args.steps, ahead=prefetch + 2, device=device)

    contenders: dict[str, Callable[[], float]] = {}
    for prefetch in args.prefetch:

        def add(name: str, batches: Iterator[object], prefetch: int = prefetch) -> None:
            contenders[f"{name}, prefetch {prefetch}"] = measured(batches, prefetch)

        for backend in ["dali", *["torch"] * bool(args.torch)]:
            for k in (None, 5):
                loader = open_backend(backend, k=k, prefetch=prefetch, **options)
                add(f"multimix_pipe {backend}, {title(k)}", forever(loader))
        context = open_backend("dali", prefetch=prefetch, **options).context
        add(
            f"multimix_pipe dali, {title(5)}, stage behind the graph",
            forever(Loader(context, DaliExecutor(context, ends="pixels"))),
        )
        add(PEER, dali_reader.batches_ahead(setting, prefetch))
        add(f"{PEER}, fancy upsampling", dali_reader.batches_ahead(setting, prefetch, fancy_upsampling=True))
    figures = in_turn(contenders, unit="images/s", peer=f"{PEER}, prefetch {args.prefetch[0]}", rounds=args.rounds)
    best: dict[str, float] = {}
    for name, values in figures.values.items():
        name = name.rpartition(",")[0]
        best[name] = max(best.get(name, 0), statistics.median(values))
    ratios = {
        "plain / DALI's pipeline": best[f"multimix_pipe dali, {title(None)}"] / best[PEER],
        "K = 5 / plain": best[f"multimix_pipe dali, {title(5)}"] / best[f"multimix_pipe dali, {title(None)}"],
    }
    print(f"B = {args.batch_size}, {args.size}x{args.size} {args.dtype}, {device}, {args.steps} batches a round")
    print(figures.table())
    print("each at its best prefetch: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    settings = {"batch_size": args.batch_size, "size": args.size, "dtype": args.dtype, "device": str(device)}
    report(
        __doc__,
        {
            **settings,
            "threads": {"loader": context.num_threads, "peer": threads},
            "rate": figures.summary(),
            "at_best": ratios,
        },
        args.json,
    )


if __name__ == "__main__":
    main()
