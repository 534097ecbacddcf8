"""Save a distributed checkpoint of a model and a loader in two processes, each after three steps, and print what remains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from helpers.batches import fingerprint
from trainers.test_torch import open_train


def main(data: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    loader, model = open_train(data, batch_size=4), torch.nn.Linear(2, 2)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    dcp.save({"model": model.state_dict(), "loader": loader}, checkpoint_id=out / "checkpoint")
    (out / f"{dist.get_rank()}.json").write_text(json.dumps([fingerprint(batch) for batch in batches]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
