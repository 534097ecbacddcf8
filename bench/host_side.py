"""How many images per second can the host feed to DALI? A whole step without DALI's own work.

    python bench/host_side.py [--samples 10256] [--tars 1282]

DALI's pipeline is a stub that takes inputs, runs and gives outputs without doing anything: what is left is drawing the plan,
reading with all checks, checking headers, feeding, and handing over a batch of one pixel an image. 110 KB are read for each image
from more bytes than fit a processor's cache, in as many shards as ImageNet has, of which few may be open at a time
(`ulimit -n 1024`). The first epoch, in which each header is parsed, is measured apart. --device is always the CPU.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any
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


class StubOutput:
    """The output of a stub pipeline."""

    def __init__(self, batch: NDArray[np.float32]) -> None:
        self._batch = batch

    def as_tensor(self) -> NDArray[np.float32]:
        return self._batch


class StubPipeline:
    """A pipeline that does nothing."""

    def __init__(self, graph: Graph) -> None:
        members = () if graph.mix is None else (graph.mix.k,)
        self._output = StubOutput(np.zeros((graph.batch_size, *members, 3, 1, 1), dtype=np.float32))

    def feed_input(self, name: str, data: object) -> None:
        """Take an input."""

    def schedule_run(self) -> None:
        """Start a step."""

    def outputs(self) -> list[StubOutput]:
        """The results of a step."""
        return [self._output]


def epochs(loader: Loader, seconds: float) -> tuple[float, float]:
    """Return images/s and CPU microseconds per image over epochs of a loader, until `seconds` have passed."""
    start, cpu, images = time.perf_counter(), time.process_time(), 0
    while True:
        for _ in loader:
            images += loader.context.config.batch_size
        if (spent := time.perf_counter() - start) >= seconds:
            return images / spent, 1e6 * (time.process_time() - cpu) / images


def rounds(count: int, seconds: float, k: int | None, **options: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the figures of new loaders: of the first epoch, and of those after it."""
    for _ in range(count):
        context = open_backend("dali", k=k, targets="rows" if k is None else "pairs", **options).context
        with Loader(context, DaliExecutor(context, ends="batch")) as loader:
            yield "first epoch", epochs(loader, 0)
            yield "later", epochs(loader, seconds)


def main() -> None:
    arguments = parser(__doc__, batch_size=256, samples=10_256, tars=1282, seconds=3.0, threads=0, prefetch=2)
    args = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    options = {"shards": str(padded_shards(args.samples, args.tars)), "batch_size": args.batch_size}
    options |= {"prefetch": args.prefetch, "num_threads": args.threads or None, "last_batch": "drop"}
    print(f"{args.samples:,} samples of 110 KB in {args.tars:,} shards, B = {args.batch_size}")
    results: dict[str, Any] = {}
    with mock.patch.object(Graph, "build", lambda graph: StubPipeline(graph)):
        for k in (None, 5):
            found: dict[str, list[tuple[float, float]]] = {"first epoch": [], "later": []}
            for epoch, figures in islice(rounds(args.rounds + 1, args.seconds, k, **options), 2, None):
                found[epoch].append(figures)
            for epoch, values in found.items():
                name = f"{'plain' if k is None else f'K = {k}'}, {epoch}"
                rate, cost = (statistics.median(column) for column in zip(*values, strict=True))
                spread = f"({min(values)[0]:,.0f} .. {max(values)[0]:,.0f})"
                print(f"{name:20} {rate:8,.0f} images/s {spread:20} {cost:5.1f} us of CPU an image", flush=True)
                results[name] = {"images/s": [v for v, _ in values], "cpu_us_an_image": [v for _, v in values]}
    print(f"target: {TARGET:,} images/s")
    report(__doc__, {"rate": results, "target": TARGET, "batch_size": args.batch_size}, args.json)


if __name__ == "__main__":
    main()
