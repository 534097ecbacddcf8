"""A process of a distributed evaluation, started by torchrun: prints its report as one line of JSON."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.samples import CLASSES, SIZE
from multimix_pipe import EvalTransform, evaluate, open_loader


def net() -> nn.Sequential:
    """Return a small network, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, CLASSES)
    )


def main(shards: str) -> None:
    model = net()
    model.register_buffer("statistics", torch.zeros(1))  # DistributedDataParallel synchronises it in each forward pass
    options = {"num_classes": CLASSES, "transform": EvalTransform(size=SIZE), "device": "cpu", "num_threads": 1}
    # 100 samples in batches of 40: the last process has 20, and one of 3 processes has none if a batch has 60
    loader, held_out = (open_loader(shards, batch_size=size, **options) for size in (40, 60))
    report = evaluate(
        DistributedDataParallel(model), loader, calibration=held_out, corruptions=["shot_noise"], severities=[3]
    )
    line = json.dumps(report)
    for rank in range(dist.get_world_size()):  # one after the other, so that lines stay whole
        if rank == dist.get_rank():
            print(line, flush=True)
        dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(sys.argv[1])
    dist.destroy_process_group()
