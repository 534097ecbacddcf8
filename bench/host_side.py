"""How many images per second can the host feed to DALI? A whole step without DALI's own work.

    python bench/host_side.py [--samples 10256] [--tars 1282]

DALI's pipeline is a stub that takes inputs, runs and gives outputs without doing anything: what is left is drawing the plan,
reading with all checks, checking headers, feeding, and handing over a batch of one pixel an image. 110 KB are read for each image
from more bytes than fit a processor's cache, in as many shards as ImageNet has, of which few may be open at a time
(`ulimit -n 1024`). The first epoch, in which each header is parsed, is measured apart. No GPU is used.
"""

from __future__ import annotations

import resource
import statistics
import time
from itertools import product
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from data import open_backend, padded_shards
from harness import parser, report
from multimix_pipe import Loader
from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.dali.graph import Graph

TARGET = 40_000
"""Images/s."""

OPEN_FILES = 1024


class StubPipeline:
    """A pipeline that does nothing, and its own output."""

    def __init__(self, graph: Graph) -> None:
        members = () if graph.mix is None else (graph.mix.k,)
        self._batch = np.zeros((graph.batch_size, *members, 3, 1, 1), dtype=np.float32)

    def feed_input(self, name: str, data: object) -> None:
        """Take an input."""

    def schedule_run(self) -> None:
        """Start a step."""

    def outputs(self) -> list[StubPipeline]:
        """Return the results of a step."""
        return [self]

    def as_tensor(self) -> NDArray[np.float32]:
        return self._batch


def epochs(loader: Loader, seconds: float) -> tuple[float, float]:
    """Return images/s and CPU microseconds per image over epochs of a loader, until `seconds` have passed."""
    start, cpu, images = time.perf_counter(), time.process_time(), 0
    while True:
        for _ in loader:
            images += loader.context.config.batch_size
        if (spent := time.perf_counter() - start) >= seconds:
            return images / spent, 1e6 * (time.process_time() - cpu) / images


def main() -> None:
    arguments = parser(__doc__, batch_size=256, samples=10_256, tars=1282, seconds=3.0, threads=0, prefetch=2)
    args = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    options = {"shards": padded_shards(args.samples, args.tars), "batch_size": args.batch_size, "last_batch": "drop"}
    options |= {"prefetch": args.prefetch, "num_threads": args.threads or None}
    print(
        f"{args.samples:,} samples of 110 KB in {args.tars:,} shards, B = {args.batch_size}; target: {TARGET:,} images/s"
    )
    found: dict[str, list[tuple[float, float]]] = {}
    with mock.patch.object(Graph, "build", lambda graph: StubPipeline(graph)):
        for k, turn in product((None, 5), range(args.rounds + 1)):
            context = open_backend("dali", k=k, targets="rows" if k is None else "pairs", **options).context
            with Loader(context, DaliExecutor(context, ends="batch")) as loader:
                for epoch, duration in (("first epoch", 0.0), ("later", args.seconds)):
                    figures = epochs(loader, duration)
                    if turn:
                        found.setdefault(f"{'plain' if k is None else f'K = {k}'}, {epoch}", []).append(figures)
    for name, values in found.items():
        rate, cost = (statistics.median(column) for column in zip(*values, strict=True))
        spread = f"({min(values)[0]:,.0f} .. {max(values)[0]:,.0f})"
        print(f"{name:20} {rate:8,.0f} images/s {spread:20} {cost:5.1f} us of CPU an image")
    report(__doc__, {"images/s, cpu_us_an_image": found, "target": TARGET, "batch_size": args.batch_size}, args.json)


if __name__ == "__main__":
    main()
