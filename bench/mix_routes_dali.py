"""The routes of bench/mix_stage.py that run in a DALI graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from mix_routes import MEAN, SCALE, NotAvailableError, Problem, Work
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from multimix_pipe.dali.stage import blend


def stock_operators(problem: Problem) -> Work:
    """`multimix_pipe.dali.stage.blend`, from float32."""
    return _work(problem, problem.images, types.FLOAT, lambda images, *drawn: blend(images, *drawn, ndim=3))


def stock_operators_from_pixels(problem: Problem) -> Work:
    """crop_mirror_normalize, then the stage."""

    def mix(pixels: DataNode, *drawn: DataNode) -> DataNode:
        images = fn.crop_mirror_normalize(pixels, mean=MEAN.tolist(), std=(1 / SCALE).tolist(), dtype=types.FLOAT)
        return blend(images, *drawn, ndim=3)

    return _work(problem, problem.pixels, types.UINT8, mix)


def numba_in_the_graph(problem: Problem) -> Work:
    """One fused kernel through DALI's numba operator, launched once a sample on a GPU."""
    if problem.dtype != torch.float32:
        raise NotAvailableError("DALI's numba operator takes no 16-bit floats")
    try:
        from nvidia.dali.plugin.numba.fn import numba_function
    except ImportError as error:
        raise NotAvailableError(f"DALI's numba operator does not import: {error}") from error
    on_gpu = problem.device.type == "cuda"
    run, launch = _gpu_kernel() if on_gpu else (_cpu_kernel, {})

    def mix(images: DataNode, partner: DataNode, lam: DataNode) -> DataNode:
        flat = fn.reshape(images, shape=[-1])
        rows = numba_function(
            *(flat, fn.permute_batch(flat, indices=partner), lam.gpu() if on_gpu else lam),
            run_fn=run,
            setup_fn=_numba_shape(problem.shape[1]),
            out_types=[types.FLOAT],
            in_types=[types.FLOAT] * 3,
            outs_ndim=[2],
            ins_ndim=[1, 1, 1],
            device="gpu" if on_gpu else "cpu",
            **launch,
        )
        return fn.reshape(rows, shape=list(problem.shape[1:]))

    return _work(problem, problem.images, types.FLOAT, mix)


def _numba_shape(k: int) -> Callable[[Any, Any], None]:
    def setup(outs: Any, ins: Any) -> None:  # DALI 2.4 shows it as many inputs as there are outputs: the images alone
        for sample in range(len(outs[0])):
            outs[0][sample][0] = k
            outs[0][sample][1] = ins[0][sample][0]

    return setup


def _cpu_kernel(out: Any, own: Any, other: Any, lam: Any) -> None:
    for k in range(len(lam)):
        rest = np.float32(1) - lam[k]
        for at in range(len(own)):
            out[k, at] = lam[k] * own[at] + rest * other[at]


def _gpu_kernel() -> tuple[Any, dict[str, Any]]:
    from numba import cuda

    def kernel(out: Any, own: Any, other: Any, lam: Any) -> None:
        for at in range(cuda.grid(1), own.shape[0], cuda.gridsize(1)):
            for k in range(lam.shape[0]):
                out[k, at] = lam[k] * own[at] + (np.float32(1) - lam[k]) * other[at]

    return kernel, {"blocks": [256, 1, 1], "threads_per_block": [256, 1, 1]}


def _work(problem: Problem, batches: Any, dtype: Any, mix: Any) -> Work:
    if problem.dtype == torch.bfloat16:
        raise NotAvailableError("DALI has no bfloat16")
    on_gpu = problem.device.type == "cuda"
    turn: Iterator[int] = count()
    handed = [batch if on_gpu else batch.numpy() for batch in batches]
    pipeline = Pipeline(
        batch_size=len(batches[0]),
        num_threads=torch.get_num_threads(),
        device_id=problem.device.index or 0 if on_gpu else None,
    )
    try:
        with pipeline:
            images = fn.external_source(
                source=lambda: handed[next(turn) % len(handed)],
                batch=True,
                dtype=dtype,
                layout="CHW",
                device="gpu" if on_gpu else "cpu",
                no_copy=True,
            )
            partner, lam = problem.partner.astype(np.int32), problem.lam
            partners = fn.external_source(source=lambda: partner, batch=True, dtype=types.INT32, ndim=0)
            weights = fn.external_source(source=lambda: lam, batch=True, dtype=types.FLOAT, ndim=1)
            mixed = mix(images, partners, weights)
            pipeline.set_outputs(fn.cast(mixed, dtype=types.FLOAT16) if problem.dtype == torch.float16 else mixed)
        pipeline.build()
    except Exception as error:  # what the operator does not admit on this machine, it says in many ways
        raise NotAvailableError(f"{type(error).__name__}: {error}") from error
    kept: list[Any] = []

    def run(_: int) -> Tensor:
        stream = torch.cuda.current_stream(problem.device) if on_gpu else None
        (rows,) = pipeline.run(stream)
        kept[:] = [rows]
        tensor: Tensor = torch.from_dlpack(rows.as_tensor())
        return tensor

    return Work(run, batches[0].numel() * batches[0].dtype.itemsize)


ROUTES = {
    "DALI, stock operators": stock_operators,
    "DALI, stock operators, from uint8": stock_operators_from_pixels,
    "DALI, numba in the graph": numba_in_the_graph,
}
