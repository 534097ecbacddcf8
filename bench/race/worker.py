"""The process of one contender: `python -m race.worker`, started and told what to do by `runner`.

Lines of JSON come in on stdin and go out on what was stdout; all else that is printed goes to stderr. The first line names the
contender and the setting, and is answered when the contender is warm; each further line asks for one turn:

    {"contender": {"batches": "race.contenders.own:torch_batches", ...}, "setting": {...}}  ->  {"ready": true}
    {"seconds": 5.0}                                            ->  {"images": 3456, "seconds": 5.1, "cpu_seconds": 9.8}

or, and then the process ends, with {"missing": ...}, {"cannot": ...} or {"failed": ...}, each a sentence.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from race.contenders import INSTALL, Contender
from race.setting import Setting
from race.usage import cpu_seconds

_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def main() -> None:
    """Answer the lines of stdin until they end."""
    os.setpgrp()  # the runner pauses, measures and ends this process together with those that it starts
    if sys.platform == "linux":  # a runner that is killed cannot end a process that stands still or hangs
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    contender, setting = Contender(**first["contender"]), Setting.from_json(first["setting"])
    try:
        answer: dict[str, Any] | None = _refusal(contender, setting)
        if answer is None:
            batches = contender.load()(setting)
            _check(next(batches), setting)
            per_thread, more = contender.queued
            for _ in range(per_thread * setting.threads + more):
                next(batches)
            answer = {"ready": True}
        print(json.dumps(answer), file=answers)
        while "ready" in answer and (line := sys.stdin.readline()):
            print(json.dumps(_turn(batches, setting, json.loads(line)["seconds"])), file=answers)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"failed": _in_a_line(error)}), file=answers)
    finally:
        sys.stderr.flush()
        # not by way of threads and processes of the contender, which may take their time, or crash
        os._exit(0)


def _refusal(contender: Contender, setting: Setting) -> dict[str, str] | None:
    for name in contender.needs:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and what it needs is not
            how = f"; {INSTALL[name]}" if name in INSTALL else ""
            return {"missing": f"{name} is not installed{how}"}
    if contender.mixes is not None and setting.k not in contender.mixes:
        can = ", ".join("no mixing" if k is None else f"K = {k}" for k in contender.mixes)
        return {"cannot": f"it does {can} only"}
    return None


def _turn(batches: Iterator[Any], setting: Setting, at_least: float) -> dict[str, float | None]:
    """Take batches for `at_least` so many seconds, after a few that do not count.

    Loaders with worker processes return their batches in rounds, one from each worker: a turn is whole rounds.
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
    """Raise ValueError if a contender does other work than it was asked for."""
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
            f"found values in {images.min():.3g} .. {images.max():.3g}"
        )
    shape = (rows,) if setting.k is None else (rows, setting.num_classes)
    if tuple(targets.shape) != shape:
        raise ValueError(f"targets must be {shape}; found {tuple(targets.shape)}")
    if setting.k is not None and (targets.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("rows of targets must sum to 1")


def _in_a_line(error: Exception) -> str:
    """The last line of a message that has several, such as the one of a DataLoader's worker: it is the error there."""
    if isinstance(error, StopIteration):
        return "it ran out of batches"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else f"{type(error).__name__}: {' '.join(lines)}"


if __name__ == "__main__":
    main()
