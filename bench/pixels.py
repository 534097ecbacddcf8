"""How far apart are the pixels of the two backends? The plan is the same, the decoder and resampler differ.

    python bench/pixels.py [--shards FOLDER] [--device cuda]

Differences are in 0..255, over all pixels of one epoch at 224x224.
"""

from __future__ import annotations

import numpy as np
import torch

from data import chosen_shards, open_backend
from harness import parser, report
from multimix_pipe import EvalTransform, Loader, TrainTransform
from multimix_pipe.config import IMAGENET_STD
from multimix_pipe.dali.executor import DaliExecutor


def main() -> None:
    args = parser(__doc__, shards=True, device="cpu").parse_args()
    folder, num_classes = chosen_shards(args.shards)
    scale = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    cases = [(kind(antialias=smooth), False) for kind in (TrainTransform, EvalTransform) for smooth in (True, False)]
    if args.device == "cpu":  # the loader resizes on the host there; also run the graph that resizes on a GPU
        cases += [(TrainTransform(antialias=smooth), True) for smooth in (True, False)]
    results = {}
    for transform, in_graph in cases:
        options = {"shards": folder, "batch_size": 50, "num_classes": num_classes, "device": args.device}
        options |= {"transform": transform, "last_batch": "partial"}
        dali, other = (open_backend(backend, k=None, **options) for backend in ("dali", "torch"))
        if in_graph:
            dali = Loader(dali.context, DaliExecutor(dali.context, ends="pixels"))
        pairs = zip(dali, other, strict=True)
        every = np.concatenate([((a.images - b.images).cpu().abs() * scale).numpy().ravel() for a, b in pairs])
        name = (
            f"{type(transform).__name__}(antialias={transform.antialias}){', resized in the graph' if in_graph else ''}"
        )
        p99, p999 = (float(np.percentile(every, part)) for part in (99, 99.9))
        results[name] = {"mean": float(every.mean()), "p99": p99, "p99.9": p999, "max": float(every.max())}
        print(f"{name:56}", "  ".join(f"{key} {value:6.2f}" for key, value in results[name].items()))
    report(__doc__, {"device": args.device, "difference": results}, args.json)


if __name__ == "__main__":
    main()
