"""What each of two processes of tests/test_rank.py runs: `-m programs.ranks FOLDER SHARDS FEWER RANK`.

The environment is that of Lightning's children, which do not know their rank before the process group exists.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from helpers.samples import CLASSES, TINY
from multimix_pipe import ConfigError, Loader, open_loader

SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "num_classes": CLASSES,
    "transform": TINY,
    "device": "cpu",
    "backend": "torch",
}


def told(call: Callable[[], object]) -> str:
    """Return what `call` raises, or "nothing"."""
    try:
        call()
    except ConfigError as error:
        return str(error)
    return "nothing"


def main(folder: Path, shards: Path, fewer: Path, rank: int) -> None:
    """Write what this process found to FOLDER/RANK.json."""

    def opened(source: Path = shards, **options: Any) -> Loader:
        return open_loader(source, **SETTINGS | {"num_threads": 1 + rank} | options)

    logging.basicConfig(level=logging.WARNING)
    early, measured = opened(last_batch="partial"), opened()
    found: dict[str, Any] = {"before the group": told(lambda: next(iter(early)))}
    len(measured)

    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found["agree"] = told(early.check_ranks)
    found["keys"] = [key for batch in early for key in batch.keys]
    found["len before the group"] = told(lambda: next(iter(measured)))
    found["other data"] = told(opened(fewer if rank else shards).check_ranks)
    found["other seed"] = told(opened(seed=rank).check_ranks)
    found["other names"] = told(opened(classes=["a", "b" if rank else "c", *map(str, range(CLASSES - 2))]).check_ranks)
    resumed = opened()
    state = resumed.state_dict()
    if rank:
        resumed.load_state_dict(state | {"samples": 16, "steps": 1})
    found["other position"] = told(resumed.check_ranks)
    found["one rank for two"] = told(opened(rank=0, world_size=2).check_ranks)
    found["one replica"] = told(opened(rank=0, world_size=1).check_ranks)
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
