"""The process of one contender: `python -m race.worker FD`, started and controlled by `runner` through a `Connection`.

It receives the contender and the setting, and answers {"ready": True} once the contender is warm. Then each number that it
receives requests a turn of at least so many seconds, and is answered with {"images": ..., "seconds": ..., "cpu_seconds": ...}. On
a problem the answer is {"missing": reason}, {"cannot": reason} or {"failed": reason}, and the process ends.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from race.contenders import INSTALL, Contender
from race.setting import Setting
from race.usage import cpu_seconds

_PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>


def main() -> None:
    """Answer what the connection sends until it ends."""
    os.setpgrp()  # the runner suspends, measures and ends this process together with its children
    if sys.platform == "linux":  # a killed runner cannot end a process that is suspended or hangs
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    contender, setting = connection.recv()
    try:
        if refusal := _refusal(contender, setting):
            connection.send(refusal)
            return
        batches = contender.load()(setting)
        _check(next(batches), setting)
        for _ in range(contender.first - 1):
            next(batches)
        connection.send({"ready": True})
        while True:
            connection.send(_turn(batches, setting, connection.recv()))
    except Exception as error:
        traceback.print_exc()
        connection.send({"failed": _in_a_line(error)})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # skip the contender's own shutdown, whose threads and processes may be slow or crash
        os._exit(0)


def _refusal(contender: Contender, setting: Setting) -> dict[str, str] | None:
    for name in contender.needs:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is installed, but one of its requirements is not
            how = f"; {INSTALL[name]}" if name in INSTALL else ""
            return {"missing": f"{name} is not installed{how}"}
    if contender.mixes is not None and setting.k not in contender.mixes:
        can = " and ".join("no mixing" if k is None else f"K = {k}" for k in contender.mixes)
        return {"cannot": f"it only supports {can}"}
    return None


def _turn(batches: Iterator[Any], setting: Setting, at_least: float) -> dict[str, float | None]:
    """Take batches for at least `at_least` seconds, after a few that are not counted.

    Loaders with worker processes return one batch from each worker in turn, so a measurement covers whole rounds of the workers.
    """
    for _ in range(setting.threads):
        next(batches)
    count = 0
    cpu = cpu_seconds(os.getpgrp())
    start = _now(setting)
    while count % setting.threads or time.perf_counter() - start < at_least:
        next(batches)
        count += 1
    duration = _now(setting) - start
    used = None if cpu is None else (cpu_seconds(os.getpgrp()) or cpu) - cpu
    return {"images": count * setting.batch_size, "seconds": duration, "cpu_seconds": used}


def _now(setting: Setting) -> float:
    if setting.device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(setting.device)
    return time.perf_counter()


def _check(batch: Any, setting: Setting) -> None:
    """Raise ValueError if a contender's batch is not what the setting requires."""
    import torch

    images, targets = batch
    rows = setting.batch_size * (setting.k or 1)
    wanted = (rows, 3, setting.size, setting.size), setting.dtype, torch.device(setting.device).type
    found = tuple(images.shape), str(images.dtype).removeprefix("torch."), images.device.type
    if found != wanted:
        raise ValueError(f"images must be {wanted}; found {found}")
    if images.float().abs().mean() > 3 or not images.min() < 0 < images.max():
        raise ValueError(
            "images must be normalised with ImageNet's mean and std; "
            f"found values from {images.min():.3g} to {images.max():.3g}"
        )
    shape = (rows,) if setting.k is None else (rows, setting.num_classes)
    if tuple(targets.shape) != shape:
        raise ValueError(f"targets must be {shape}; found {tuple(targets.shape)}")
    if setting.k is not None and (targets.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("rows of targets must sum to 1")


def _in_a_line(error: Exception) -> str:
    """Describe an error in one line. In a message of several lines, as from a DataLoader worker, the last line is the error."""
    if isinstance(error, StopIteration):
        return "it ran out of batches"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else f"{type(error).__name__}: {' '.join(lines)}"


if __name__ == "__main__":
    main()
