"""A training run that may be killed, for tests/test_kill.py; `python -m programs.train JSON` with the arguments of `main`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from helpers.batches import fingerprint
from helpers.samples import CLASSES, TINY
from multimix_pipe import MultiMix, open_loader
from programs.server import LIMIT

SETTINGS: dict[str, Any] = {"batch_size": 8, "num_classes": CLASSES, "transform": TINY, "mix": MultiMix(k=2)}
SETTINGS |= {"device": "cpu", "num_threads": 2, "prefetch": 3}
SAVE_EVERY = 2
"""Steps. An epoch has 13: its last step is the last one before a checkpoint in every second epoch."""


def main(shards: str, run: str, backend: str, life: int, epochs: int | None) -> None:
    """Go on behind the last checkpoint until so many epochs are over; None: for ever.

    `run`/checkpoint.json holds the loader's state and, in the place of a model's weights, all batches that they have seen.
    `run`/life-N has all batches that this process has trained on, with those that came after its last checkpoint.
    """
    checkpoint = Path(run) / "checkpoint.json"
    trained: list[Any] = []
    epoch = 0
    with open_loader(shards, backend=backend, **SETTINGS) as loader, open(Path(run) / f"life-{life}", "a") as journal:
        if checkpoint.exists():
            saved = json.loads(checkpoint.read_text())
            loader.load_state_dict(saved["loader"])
            trained, epoch = saved["trained"], saved["loader"]["epoch"]
        while epochs is None or epoch < epochs:
            loader.set_epoch(epoch)
            for batch in loader:
                trained.append(fingerprint(batch))
                journal.write(json.dumps(trained[-1]) + "\n")
                journal.flush()
                if len(trained) % SAVE_EVERY == 0:
                    save(checkpoint, {"loader": loader.state_dict(), "trained": trained})
            epoch += 1
        save(checkpoint, {"loader": loader.state_dict(), "trained": trained})


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole, or is the one before, whenever this process is killed."""
    partial = path.with_suffix(".partial")
    with open(partial, "w") as file:
        json.dump(content, file)
    os.replace(partial, path)


if __name__ == "__main__":
    signal.alarm(LIMIT)
    main(**json.loads(sys.argv[1]))
