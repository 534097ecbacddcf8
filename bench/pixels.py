"""How far apart are the pixels of the two backends? Same plan, other decoder and resampler.

    python bench/pixels.py [--shards FOLDER] [--device cuda]

Differences are of 0..255 values, over all pixels of one epoch at 224x224.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from data import chosen_shards

from multimix_pipe import EvalTransform, Loader, TrainTransform, open_loader
from multimix_pipe.benchmark.harness import parser, report
from multimix_pipe.config import IMAGENET_STD


def resizing_in_the_graph(loader: Loader) -> Loader:
    """The same loader, whose graph does all that it does on a GPU."""
    from multimix_pipe.dali.executor import DaliExecutor

    return Loader(loader.context, DaliExecutor(loader.context, resizes=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--shards", type=Path, help="a folder of shards with classes.json; default: generated photos"
    )
    arguments.add_argument("--device", default="cpu")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    scale = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    results = {}
    cases = [
        (kind(antialias=antialias), False) for kind in (TrainTransform, EvalTransform) for antialias in (True, False)
    ]
    if args.device == "cpu":  # what a GPU's graph resizes, the host does on a CPU: here that graph runs on the CPU too
        cases += [(TrainTransform(antialias=True), True), (TrainTransform(antialias=False), True)]
    for transform, in_graph in cases:
        loaders = [
            open_loader(
                folder,
                batch_size=50,
                num_classes=num_classes,
                mix=None,
                transform=transform,
                last_batch="partial",
                backend=backend,
                device=args.device,
            )
            for backend in ("dali", "torch")
        ]
        if in_graph:
            loaders[0] = resizing_in_the_graph(loaders[0])
        differences = []
        for (ours, _), (theirs, _) in zip(*loaders, strict=True):
            differences.append(((ours - theirs).cpu().abs() * scale).numpy().ravel())
        every = np.concatenate(differences)
        where = ", resized in the graph" if in_graph else ""
        name = f"{type(transform).__name__}(antialias={transform.antialias}){where}"
        worst = [float(np.percentile(every, part)) for part in (99, 99.9)]
        results[name] = {"mean": float(every.mean()), "p99": worst[0], "p99.9": worst[1], "max": float(every.max())}
        print(f"{name:56}", "  ".join(f"{key} {value:6.2f}" for key, value in results[name].items()))
    report(__doc__.splitlines()[0], {"device": args.device, "difference": results}, args.json)


if __name__ == "__main__":
    main()
