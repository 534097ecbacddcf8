"""The order of DALI's own reader of WebDataset shards: a peer of bench/shuffle.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn

from multimix_pipe.shards.dali_index import write_dali_indexes


def reader_order(shards: list[str], extension: str, count: int, seed: int) -> NDArray[np.int64]:
    """The numbers in the members `extension` of the first `count` samples that its reader with its default buffer gives."""
    batch_size = 1000
    with tempfile.TemporaryDirectory() as folder:
        indexes = write_dali_indexes([Path(shard) for shard in shards], folder)
        pipeline = Pipeline(batch_size=batch_size, num_threads=1, device_id=None, seed=seed)
        with pipeline:
            number = fn.readers.webdataset(
                paths=shards, index_paths=[str(index) for index in indexes], ext=[extension], random_shuffle=True
            )
            pipeline.set_outputs(number)
        pipeline.build()
        read = [int(bytes(np.asarray(number))) for _ in range(-(-count // batch_size)) for number in pipeline.run()[0]]
    return np.array(read[:count])
