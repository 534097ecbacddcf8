"""Memory of the pool is used again once nobody refers to it, and never before."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from multimix_pipe.runtime.buffers import ALIGNMENT, BufferPool


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_returns_with_its_last_view() -> None:
    pool = BufferPool()
    memory = pool.take(64)
    where = address(memory)
    view = torch.from_numpy(memory).view(torch.float32)[3:5]
    del memory
    gc.collect()
    other = pool.take(64)
    assert address(other) != where
    del view
    gc.collect()
    assert address(pool.take(64)) == where


def test_memory_is_reused_for_sizes_down_to_half_of_it() -> None:
    pool = BufferPool()
    where = address(pool.take(4096))
    for size in (4096, 3000, 2048):
        memory = pool.take(size)
        assert (address(memory), len(memory)) == (where, size)
        del memory
    larger, smaller = pool.take(4097), pool.take(2047)
    assert where not in (address(larger), address(smaller))


def test_the_smallest_that_fits_is_taken() -> None:
    pool = BufferPool()
    held = [pool.take(size) for size in (1500, 1100, 1900)]
    places = [address(memory) for memory in held]
    del held
    assert address(pool.take(1000)) == places[1]


def test_few_unused_buffers_are_kept() -> None:
    pool = BufferPool(spare=2)
    held = [pool.take(4096) for _ in range(5)]
    assert len({address(memory) for memory in held}) == 5
    freed = [address(memory) for memory in held]
    del held
    assert [address(pool.take(size)) in freed for size in (4096, 4096)] == [True, True]
    assert len(pool._unused) <= 2


@pytest.mark.parametrize("size", [1, 63, 4096, 10**6])
def test_memory_begins_at_a_multiple_of_a_cache_line(size: int) -> None:
    assert address(BufferPool().take(size)) % ALIGNMENT == 0
