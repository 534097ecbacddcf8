"""What the DALI backend relies upon on a GPU, asked of DALI alone: whose fault it is when a test of the loader fails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

dali = pytest.importorskip("nvidia.dali", reason="DALI does not import", exc_type=ImportError)

from nvidia.dali import Pipeline, fn, types  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU that torch can use")

ROWS, SIDE, STEPS = 16, 256, 24
EXPECTED = torch.arange(STEPS, dtype=torch.float64) * ROWS * SIDE * SIDE * 3


def numbered_batches(prefetch: int = 2) -> Iterator[torch.Tensor]:
    """Batch i is full of the number i, made on the GPU and handed over on torch's current stream."""
    pipeline = Pipeline(batch_size=ROWS, num_threads=1, device_id=0, prefetch_queue_depth=prefetch)
    with pipeline:
        number = fn.external_source(
            source=lambda info: np.full((ROWS, 1, 1, 1), info.iteration % STEPS, dtype=np.float32),
            batch=True,
            batch_info=True,
            dtype=types.FLOAT,
            ndim=3,
        ).gpu()
        pipeline.set_outputs(number * types.Constant(np.ones((3, SIDE, SIDE), dtype=np.float32), device="gpu"))
    pipeline.build()
    while True:
        (output,) = pipeline.run(torch.cuda.current_stream())
        yield torch.from_dlpack(output.as_tensor())
        del output


def test_memory_is_not_used_again_while_a_kernel_of_the_consumers_stream_reads_it() -> None:
    """DALI frees in the order of a stream; if that is its own and not the consumer's, a dropped batch must be kept alive."""
    batches, sums = numbered_batches(), []
    for _ in range(STEPS):
        batch = next(batches)
        torch.cuda._sleep(50_000_000)
        sums.append(batch.double().sum())
        del batch
    torch.cuda.synchronize()
    assert torch.stack(sums).cpu().equal(EXPECTED)


def test_a_kept_output_is_not_used_again() -> None:
    batches = numbered_batches()
    kept = [next(batches) for _ in range(STEPS)]
    torch.cuda.synchronize()
    assert torch.stack([batch.double().sum() for batch in kept]).cpu().equal(EXPECTED)


def test_taking_an_output_waits_for_nothing_on_the_consumers_stream() -> None:
    batches = numbered_batches()
    for _ in range(4):
        next(batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    for _ in range(3):
        next(batches)
    waited = busy.query()
    torch.cuda.synchronize()
    assert not waited
