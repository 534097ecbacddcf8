"""PendingReads ahead: each row gets its own sample's bytes, many requests are under way at once, an error stays in its step."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from helpers.batches import Open
from multimix_pipe import ShardError
from multimix_pipe.runtime.prefetcher import READERS, Memory, Prefetcher


def test_each_row_gets_the_bytes_of_its_sample(opened: Open) -> None:
    loader = opened(batch_size=13, backend="torch")
    context = loader.context
    readers = Prefetcher(context)
    steps = [context.plan.step(0, first, first + 13) for first in range(0, 91, 13)]

    def read_from(sample: int, memory: Memory) -> Memory:
        return context.reader.read(sample, memory)

    readings = [
        readers.start(step, lambda row, memory, step=step: read_from(int(step.sample[row]), memory)) for step in steps
    ]
    for step, reading in zip(steps, readings, strict=True):
        expected = [context.reader.read(int(sample)) for sample in step.sample]
        for row, (one, all_of_them) in enumerate(zip(expected, reading.rows(), strict=True)):
            assert np.array_equal(reading.row(row), one)
            assert np.array_equal(all_of_them, one)
    readers.close()


def test_as_many_requests_as_readers_are_under_way_at_once(opened: Open) -> None:
    context = opened(batch_size=64, backend="torch").context
    readers = Prefetcher(context)
    together = threading.Barrier(READERS)  # which nobody passes until all are there

    def wait(row: int, memory: Memory) -> int:
        if row in first_of_tasks:
            together.wait(timeout=30)
        return row

    step = context.plan.step(0, 0, 64)
    first_of_tasks = set(np.argsort(step.sample, kind="stable")[:: 64 // READERS].tolist())
    assert readers.start(step, wait).rows() == list(range(64))
    readers.close()


def test_an_error_is_raised_where_its_row_is_asked_for(opened: Open) -> None:
    context = opened(batch_size=8, backend="torch").context
    readers = Prefetcher(context)

    def read_row(row: int, memory: Memory) -> int:
        if row == 3:
            raise ShardError("row 3")
        return row

    step = context.plan.step(0, 0, 8)
    reading = readers.start(step, read_row)
    with pytest.raises(ShardError, match="row 3"):
        reading.row(3)
    with pytest.raises(ShardError, match="row 3"):
        reading.rows()
    other = np.argsort(step.sample, kind="stable")
    place = int(np.flatnonzero(other == 3)[0])
    untouched = int(other[0] if place >= 4 else other[7])  # of the other task
    assert reading.row(untouched) == untouched
    readers.close()
