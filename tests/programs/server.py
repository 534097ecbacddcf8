"""Forks a child for each line of stdin: `python -m programs.server`, for `helpers.forks`.

A line is JSON: the name of one of these programs, the arguments of its `main`, and a file for what that returns, as JSON. The
server answers with the child's process id and, when the child has ended, with its exit code. It has imported what children need
and has a single thread, so that a fork is as good as a new process and saves seconds.
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
from helpers.samples import TINY
from multimix_pipe.runtime.kernels import host_kernel
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.tensors import MixTensors

LIMIT = 120
"""Seconds after which a child ends by itself; the server, twice that after a line that it cannot answer."""


def prepare() -> None:
    """Import what children need, and load the compiled kernel, all in this thread."""
    importlib.import_module("multimix_pipe.native.executor")
    if dali_missing() is None:
        importlib.import_module("multimix_pipe.dali.executor")
    if (host := host_kernel()) is not None:
        pixels, out = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.empty(2, 2, 3, 8, 8)
        mix = MixTensors(torch.tensor([1, 0]), torch.ones(2, 2))
        normalize = Normalize.of(TINY, channels_last=False)
        host.blend(pixels, mix, out, normalize.layout(pixels.shape), normalize)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SystemExit(f"a server that forks must have one thread; found {threads}")


def serve() -> None:
    """Fork a child for each line of stdin."""
    for line in sys.stdin:
        signal.alarm(2 * LIMIT)  # a child does not inherit it
        child = os.fork()
        if not child:
            signal.alarm(LIMIT)
            code = 1
            try:
                run(*json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        signal.alarm(0)


def run(program: str, arguments: dict[str, Any], out: str) -> None:
    """Run one of the programs and write down what its `main` returns."""
    result = importlib.import_module(f"programs.{program}").main(**arguments)
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    prepare()
    serve()
