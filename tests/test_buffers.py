"""Memory of the pool is used again once nobody refers to it, and never before."""

from __future__ import annotations

import gc

import numpy as np
import torch

from multimix_pipe.buffers import BufferPool


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


def test_sizes_do_not_mix_and_few_unused_buffers_are_kept() -> None:
    pool = BufferPool(spare=2)
    held = [pool.take(4096) for _ in range(5)]
    freed = [address(memory) for memory in held]
    assert len(set(freed)) == 5
    del held
    gc.collect()
    assert len(pool.take(8192)) == 8192
    assert len(pool._free[4096]) == 2
    assert address(pool.take(4096)) in freed
