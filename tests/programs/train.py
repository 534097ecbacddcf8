"""A training run that may be killed, for tests/test_kill.py: `python -m programs.train train JSON`, or `serve` to fork many.

JSON has the arguments of `train`. A server reads them line by line from stdin. For each line it forks a child, answers with the
child's process id, and when that has ended with its exit code. It has imported all that a child needs and has one thread, so
that a fork is as good as a new process, and saves seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from helpers.backends import dali_missing
from helpers.batches import fingerprint
from helpers.samples import CLASSES, TINY
from multimix_pipe import MultiMix, open_loader
from multimix_pipe.runtime.kernels import host_kernel
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.tensors import MixTensors

SETTINGS: dict[str, Any] = {"batch_size": 8, "num_classes": CLASSES, "transform": TINY, "mix": MultiMix(k=2)}
SETTINGS |= {"device": "cpu", "num_threads": 2, "prefetch": 3}
SAVE_EVERY = 2
"""Steps. An epoch has 13: its last step is the last one before a checkpoint in every second epoch."""
LIMIT = 120
"""Seconds after which a life ends by itself; a server, twice that after a line that it cannot answer."""


def train(shards: str, run: str, backend: str, life: int, epochs: int | None) -> None:
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
    """Write a file that is whole, or is the one before."""
    partial = path.with_suffix(".partial")
    with open(partial, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def serve() -> None:
    """Fork a child for each line of stdin."""
    importlib.import_module("multimix_pipe.native.executor")
    if dali_missing() is None:
        importlib.import_module("multimix_pipe.dali.executor")
    if (host := host_kernel()) is not None:  # loads the compiled kernel, in this thread
        pixels, out = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.empty(2, 2, 3, 8, 8)
        mix = MixTensors(torch.tensor([1, 0]), torch.ones(2, 2))
        normalize = Normalize.of(TINY, channels_last=False)
        host.blend(pixels, mix, out, normalize.layout(pixels.shape), normalize)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SystemExit(f"a server that forks must have one thread; found {threads}")
    for line in sys.stdin:
        signal.alarm(2 * LIMIT)  # a child does not inherit it
        child = os.fork()
        if not child:
            signal.alarm(LIMIT)
            code = 1
            try:
                train(**json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        signal.alarm(LIMIT)
        train(**json.loads(sys.argv[2]))
