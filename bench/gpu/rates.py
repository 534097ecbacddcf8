"""How many pairs a second does the pipeline hand out on a GPU, with K = 5 and without mixing, next to DALI's own pipeline?

    python bench/gpu/rates.py --device cuda [--shards FOLDER] [--torch 1]

The target is a ratio of 0.97 for K = 5 against no mixing. "stage behind the graph" decodes and resizes in DALI and mixes with
torch's operations; "DALI's classification pipeline" is the one of the race (`readers.webdataset`, a random window, resize,
mirror, normalise), without mixing. A round is --steps batches; --repeat is how often an epoch reads the shards; --threads 0 are
all cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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

PREFETCH = 2


def main() -> None:
    arguments = parser(
        __doc__, shards=True, device="cuda", batch_size=256, size=224, repeat=128, steps=50, threads=0, torch=0
    )
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards, device, threads = repeated(folder, args.repeat), torch.device(args.device), args.threads or usable_cores()
    options = {"shards": shards, "batch_size": args.batch_size, "num_classes": num_classes, "device": args.device}
    options |= {"transform": TrainTransform(size=args.size), "dtype": args.dtype, "last_batch": "wrap"}
    options |= {"num_threads": threads, "prefetch": PREFETCH}

    def measured(loader: Loader) -> Callable[[], float]:
        return rate(forever(loader), args.batch_size, args.steps, ahead=PREFETCH + 2, device=device)

    contenders: dict[str, Callable[[], float]] = {}
    for backend in ["dali", *["torch"] * bool(args.torch)]:
        for k, name in ((None, "no mixing"), (5, "K=5")):
            contenders[f"multimix_pipe {backend}, {name}"] = measured(open_backend(backend, k=k, **options))
    context = open_backend("dali", **options).context
    behind = Loader(context, DaliExecutor(context, ends="pixels"))
    contenders["multimix_pipe dali, K=5, stage behind the graph"] = measured(behind)
    setting = Setting(
        tuple(shards), num_classes, args.batch_size, k=None, threads=threads, size=args.size, device=str(device),
        dtype="float32" if args.dtype == "bfloat16" else args.dtype,
    )  # fmt: skip
    contenders["DALI's classification pipeline"] = rate(
        dali_reader.batches(setting), args.batch_size, args.steps, ahead=PREFETCH + 2, device=device
    )
    figures = in_turn(contenders, unit="images/s", peer="multimix_pipe dali, no mixing", rounds=args.rounds)
    print(f"B = {args.batch_size}, {args.size}x{args.size} {args.dtype}, {device}, {args.steps} batches a round")
    print(figures.table())
    settings = {"batch_size": args.batch_size, "size": args.size, "dtype": args.dtype, "device": str(device)}
    report(__doc__, {**settings, "threads": threads, "rate": figures.summary()}, args.json)


if __name__ == "__main__":
    main()
