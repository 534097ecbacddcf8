"""Multi-mix as a stage of a DALI graph, made of stock operators, the same on the CPU and the GPU.

The loader's graph (`dali.graph`) and `multi_mix`, which is for your own pipelines, share `mix_images`. The batch size stays B:
each DALI sample becomes its K members, stacked. So outputs are (B, K, ...), and `images.flatten(0, 1)` gives the B*K rows for a
model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from multimix_pipe.config import check_choice, check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import METHODS, Field, LamPer, MixPlan, MultiMix, Pairing, Sampling
from multimix_pipe.plan import draw_mixing

Size = tuple[int, int]
ImageLayout = Literal["CHW", "HWC"]


class MixNodes(NamedTuple):
    """A batch's `MixPlan` as nodes of a graph: on the CPU, one value per sample."""

    partner: DataNode
    """int32 scalar, a row of the batch."""
    lam: DataNode
    """float32 (K,)."""
    boxed: DataNode | None = None
    """float32 scalar: 1 if the pair's weight field is a box, else 0. None if no method of the graph has boxes."""
    box: DataNode | None = None
    """int32 (K, 4) y0, x0, y1, x1."""


TYPES = {"partner": (types.INT32, 0), "lam": (types.FLOAT, 1), "boxed": (types.FLOAT, 0), "box": (types.INT32, 2)}
"""dtype and number of dimensions of the inputs for a plan."""


def input_names(mix: MultiMix) -> list[str]:
    """Return the names (keys of TYPES) of the inputs that plans of `mix` need."""
    return list(TYPES)[: 4 if METHODS[mix.method].field is Field.BOX else 2]


def input_arrays(plan: MixPlan) -> dict[str, NDArray[np.generic]]:
    """Return a plan's values for all inputs: arrays of B rows."""
    return {
        "partner": plan.partner.astype(np.int32),
        "lam": plan.lam,
        "boxed": plan.boxed.astype(np.float32),
        "box": plan.box,
    }


def mix_images(
    images: DataNode, mix: MixNodes, size: Size | None = None, layout: ImageLayout | None = None
) -> DataNode:
    """Return w_k * x + (1 - w_k) * x' for the weight fields of `mix`: float32 (K, *shape) for each image.

    images: float32 with three dimensions. `size` and `layout` describe them, and are required if `mix` has boxes.
    """
    weight = fn.reshape(_on(images, mix.lam), shape=[-1, 1, 1, 1])
    if mix.box is not None:
        boxed = _on(images, mix.boxed)
        weight = boxed * _outside(_on(images, mix.box), size, layout, images.device) + (np.float32(1) - boxed) * weight
    return _blend(images, mix.partner, weight)


def mix_targets(labels: DataNode, mix: MixNodes, num_classes: int) -> DataNode:
    """Return lam_k * y + (1 - lam_k) * y' for one-hot y: float32 (K, num_classes) for each label.

    labels: class ids, int scalars or (1,).
    """
    one_hot = fn.one_hot(fn.reshape(labels, shape=[]), num_classes=num_classes, dtype=types.FLOAT)
    return _blend(one_hot, mix.partner, fn.reshape(_on(one_hot, mix.lam), shape=[-1, 1]))


def _on(other: DataNode, node: DataNode) -> DataNode:
    return node.gpu() if other.device == "gpu" else node


def _blend(samples: DataNode, partner: DataNode, weight: DataNode) -> DataNode:
    other = fn.permute_batch(samples, indices=partner)
    return weight * fn.expand_dims(samples, axes=[0]) + (np.float32(1) - weight) * fn.expand_dims(other, axes=[0])


def _outside(box: DataNode, size: Size | None, layout: ImageLayout | None, device: str) -> DataNode:
    """Return 1 outside each member's box and 0 inside: float32 (K, ...), all other axes but height and width of length 1."""
    assert size is not None
    y_axis = 2 if layout == "CHW" else 1
    y, x = (_positions(side, axis, device) for side, axis in zip(size, (y_axis, y_axis + 1), strict=True))
    y0, x0, y1, x1 = (fn.reshape(fn.slice(box, start=i, shape=1, axes=[1]), shape=[-1, 1, 1, 1]) for i in range(4))
    inside = ((y >= y0) & (y < y1)) & ((x >= x0) & (x < x1))
    return np.float32(1) - fn.cast(inside, dtype=types.FLOAT)


def _positions(side: int, axis: int, device: str) -> DataNode:
    shape = [side if i == axis else 1 for i in range(4)]
    return types.Constant(np.arange(side, dtype=np.int32).reshape(shape), device=device)


def multi_mix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    k: int = 5,
    alpha: float = 1.0,
    method: str = "mixup",
    sampling: Sampling = "iid",
    lam_per: LamPer = "pair",
    pairing: Pairing = "derangement",
    prob: float = 1.0,
    size: Size | None = None,
    layout: ImageLayout | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DataNode, DataNode]:
    """Return K ordered interpolations of each pair of samples in the batch, inside any `@pipeline_def`.

    Args:
        images: 3-dimensional samples (HWC or CHW, any numeric dtype), of one shape in the whole batch, on the CPU or the GPU.
        labels: class ids in [0, num_classes), int scalars or (1,). For those of `readers.webdataset`, see `class_id`.
        k, alpha, method, sampling, lam_per, pairing, prob: as in `MultiMix`.
        size, layout: (height, width) of the images, and "CHW" or "HWC"; required for every method except "mixup".
        seed, rank, world_size: the draws are keyed by (seed, the pipeline's epoch, iteration * world_size + rank).

    Returns:
        images: samples (K, *shape) float32, on the images' device;
        targets: samples (K, num_classes) float32 whose rows sum to 1, on the labels' device.

    Raises ConfigError for an invalid argument, or outside a pipeline definition. Every batch must have `max_batch_size` samples,
    as those of DALI's readers have.

    >>> @pipeline_def(batch_size=64, num_threads=4, device_id=0)
    ... def training():
    ...     encoded, cls = fn.readers.webdataset(paths="train-000.tar", ext=["jpg", "cls"], random_shuffle=True)
    ...     images = fn.decoders.image_random_crop(encoded, device="mixed")
    ...     images = fn.crop_mirror_normalize(fn.resize(images, size=[224, 224]), dtype=types.FLOAT)
    ...     return multi_mix(images, class_id(cls).gpu(), num_classes=1000, k=5, alpha=1.0)
    """
    mix = MultiMix(k=k, alpha=alpha, method=method, sampling=sampling, lam_per=lam_per, pairing=pairing, prob=prob)
    check_int("num_classes", num_classes, 1)
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("world_size", world_size, 1)
    check_int("rank", rank, 0, world_size - 1)
    if layout is not None:
        check_choice("layout", layout, ("CHW", "HWC"))
    if METHODS[method].field is Field.BOX and (size is None or layout is None):
        raise ConfigError(f'method={method!r} needs size=(height, width) and layout="CHW" or "HWC" of the images')
    pipeline = Pipeline.current()
    if pipeline is None:
        raise ConfigError(
            "multi_mix must be called while a DALI pipeline is being defined (inside a @pipeline_def function)"
        )
    names = input_names(mix)
    drawn = fn.external_source(
        source=_draws(mix, names, seed, rank, world_size, int(pipeline.max_batch_size), size or (1, 1)),
        num_outputs=len(names),
        batch=True,
        batch_info=True,
        dtype=[TYPES[name][0] for name in names],
        ndim=[TYPES[name][1] for name in names],
    )
    nodes = MixNodes(*drawn)
    # DALI has no float16 arithmetic on a CPU, and float64 would stay float64
    images = fn.cast(images, dtype=types.FLOAT)
    return mix_images(images, nodes, size, layout), mix_targets(labels, nodes, num_classes)


def _draws(
    mix: MultiMix, names: list[str], seed: int, rank: int, world_size: int, rows: int, size: Size
) -> Callable[[types.BatchInfo], list[list[NDArray[np.generic]]]]:
    def draw(info: types.BatchInfo) -> list[list[NDArray[np.generic]]]:
        start = (info.iteration * world_size + rank) * rows
        arrays = input_arrays(draw_mixing(mix, seed, info.epoch_idx, start, rows, size))
        return [list(arrays[name]) for name in names]

    return draw


def class_id(cls: DataNode) -> DataNode:
    """Return the number in a WebDataset `cls` member, ASCII bytes (n,) uint8, as an int32 scalar.

    It may have up to nine digits, and white space may follow them.
    """
    count = fn.reductions.sum(fn.cast(cls >= ord("0"), dtype=types.INT32), dtype=types.INT32)
    digits = fn.slice(cls, start=0, shape=count, axes=[0])
    powers = types.Constant(np.array([10**power for power in range(8, -1, -1)], dtype=np.int32), device="cpu")
    powers = fn.slice(powers, start=9 - count, shape=count, axes=[0])
    return fn.reductions.sum(fn.cast(digits - ord("0"), dtype=types.INT32) * powers, dtype=types.INT32)
