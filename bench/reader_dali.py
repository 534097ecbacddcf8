"""DALI's own reader of WebDataset shards, alone: a peer of bench/reader.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from nvidia.dali import Pipeline, fn

from multimix_pipe.benchmark.harness import seconds
from multimix_pipe.shards.dali_index import write_dali_indexes


def samples_a_second(shards: list[str], batch_size: int, steps: int) -> Callable[[], float]:
    """Its rate in the order of the files, which its buffer shuffles; encoded bytes and class ids are handed out."""
    with tempfile.TemporaryDirectory() as folder:
        indexes = write_dali_indexes([Path(shard) for shard in shards], folder)
        pipeline = Pipeline(batch_size=batch_size, num_threads=2, device_id=None)
        with pipeline:
            read = fn.readers.webdataset(
                paths=shards, index_paths=[str(index) for index in indexes], ext=["jpg", "cls"], random_shuffle=True
            )
            pipeline.set_outputs(*read)
        pipeline.build()
        pipeline.run()

    def measure() -> float:
        return steps * batch_size / seconds(lambda: [pipeline.run() for _ in range(steps)])

    return measure
