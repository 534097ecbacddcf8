"""Multi-mix as a stage of a DALI pipeline: stock operators, the same on the CPU and the GPU.

The batch stays a batch of B: each DALI sample becomes its K mixed rows, stacked. So outputs are (B, K, ...) tensors, and
`images.flatten(0, 1)` gives the B*K rows of a model's batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from multimix_pipe.config import LamPer, MultiMix, Pairing, Sampling, check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.plan import draw_mixing


def multi_mix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    k: int = 5,
    alpha: float = 1.0,
    sampling: Sampling = "iid",
    lam_per: LamPer = "pair",
    pairing: Pairing = "derangement",
    prob: float = 1.0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DataNode, DataNode]:
    """K ordered interpolations of each sample pair of the batch, inside any `@pipeline_def`.

    Args:
        images: samples of 3 dimensions and one shape for the whole batch (HWC or CHW, any numeric type), on the CPU or the GPU.
        labels: class ids, int scalars or (1,), in [0, num_classes). From `readers.webdataset`, see `class_id`.
        k, alpha, sampling, lam_per, pairing, prob: as in `MultiMix`.
        seed, rank, world_size: the draws are keyed by (seed, the pipeline's epoch, iteration * world_size + rank).

    Returns:
        images: samples (K, *shape) float32, on the images' device;
        targets: samples (K, num_classes) float32 whose rows sum to 1, on the labels' device.

    Every batch must be full (`max_batch_size` samples), as DALI's readers make them.

    >>> @pipeline_def(batch_size=64, num_threads=4, device_id=0)
    ... def training():
    ...     encoded, cls = fn.readers.webdataset(paths="train-000.tar", ext=["jpg", "cls"], random_shuffle=True)
    ...     images = fn.decoders.image_random_crop(encoded, device="mixed")
    ...     images = fn.crop_mirror_normalize(fn.resize(images, size=[224, 224]), dtype=types.FLOAT)
    ...     return multi_mix(images, class_id(cls).gpu(), num_classes=1000, k=5, alpha=1.0)
    """
    mix = MultiMix(k=k, alpha=alpha, sampling=sampling, lam_per=lam_per, pairing=pairing, prob=prob)
    check_int("num_classes", num_classes, 1)
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("world_size", world_size, 1)
    check_int("rank", rank, 0, world_size - 1)
    pipeline = Pipeline.current()
    if pipeline is None:
        raise ConfigError(
            "multi_mix must be called while a DALI pipeline is being defined (inside a @pipeline_def function)"
        )
    partner, lam = fn.external_source(
        source=_draws(mix, seed, rank, world_size, int(pipeline.max_batch_size)),
        num_outputs=2,
        batch=True,
        batch_info=True,
        dtype=[types.INT32, types.FLOAT],
        ndim=[0, 1],
    )
    one_hot = fn.one_hot(fn.reshape(labels, shape=[]), num_classes=num_classes, dtype=types.FLOAT)
    # DALI's arithmetic knows no float16 on a CPU, and float64 would stay float64
    images = fn.cast(images, dtype=types.FLOAT)
    return blend(images, partner, lam, ndim=3), blend(one_hot, partner, lam, ndim=1)


def blend(samples: DataNode, partner: DataNode, lam: DataNode, ndim: int) -> DataNode:
    """lam_k * x + (1 - lam_k) * x' for each sample x: (K, *shape) float32.

    samples: float32 of `ndim` dimensions; partner: CPU int scalars, a row of the batch each; lam: CPU float32 (K,).
    """
    weight = fn.reshape(lam, shape=[-1] + [1] * ndim)
    rest = np.float32(1) - weight
    if samples.device == "gpu":
        weight, rest = weight.gpu(), rest.gpu()
    other = fn.permute_batch(samples, indices=partner)
    return weight * fn.expand_dims(samples, axes=[0]) + rest * fn.expand_dims(other, axes=[0])


def class_id(cls: DataNode) -> DataNode:
    """The number in a WebDataset `cls` member: its ASCII bytes, uint8 (n,), as an int32 scalar.

    At most nine digits; white space may follow them.
    """
    count = fn.reductions.sum(fn.cast(cls >= ord("0"), dtype=types.INT32), dtype=types.INT32)
    digits = fn.slice(cls, start=0, shape=count, axes=[0])
    powers = types.Constant(np.array([10**power for power in range(8, -1, -1)], dtype=np.int32), device="cpu")
    powers = fn.slice(powers, start=9 - count, shape=count, axes=[0])
    return fn.reductions.sum(fn.cast(digits - ord("0"), dtype=types.INT32) * powers, dtype=types.INT32)


def _draws(
    mix: MultiMix, seed: int, rank: int, world_size: int, rows: int
) -> Callable[[types.BatchInfo], tuple[list[NDArray[np.int32]], list[NDArray[np.float32]]]]:
    def draw(info: types.BatchInfo) -> tuple[list[NDArray[np.int32]], list[NDArray[np.float32]]]:
        start = (info.iteration * world_size + rank) * rows
        partner, lam = draw_mixing(mix, seed, info.epoch_idx, start, rows)
        return list(partner.astype(np.int32)), list(lam)

    return draw
