"""Multi-mix as a stage of a DALI graph, made of stock operators, the same on the CPU and the GPU.

The loader's graph (`dali.graph`) and `multi_mix`, which is for your own pipelines, share `mix_images`. The batch size stays B:
each DALI sample becomes its K members, stacked. So outputs are (B, K, ...), and `images.flatten(0, 1)` gives the B*K rows for a
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from multimix_pipe.config import check_bool, check_choice, check_height_width, check_int
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import (
    Alpha,
    Crops,
    Field,
    LamPer,
    Method,
    MixPlan,
    MixSchedule,
    MultiMix,
    Pairing,
    Partners,
    Sampling,
    fields_of,
)
from multimix_pipe.plan import draw_mixing

Size = tuple[int, int]
ImageLayout = Literal["CHW", "HWC"]


class MixNodes(NamedTuple):
    """What images are mixed by, as nodes of a graph: on the CPU, one value per sample.

    A weight field is the product of three parts, of which two are 1: the switch between methods is arithmetic.
    """

    partner: DataNode
    """int32, a row of the batch: a scalar, or (K,), one for each member."""
    constant: DataNode
    """float32 (K,), `MixPlan.constant`."""
    box: DataNode | None = None
    """int32 (K, 4) y0, x0, y1, x1, or None if no method of the graph has boxes."""
    factors: DataNode | None = None
    """float32 (K, H + W), `MixPlan.factors`, or None if no method of the graph has smooth fields."""
    patch: DataNode | None = None
    """int32 (K, 4) y0, x0, height, width: where each member shows its partner, resized; the whole image unless the pair's field
    is RESIZED. None if no method of the graph resizes."""
    members: DataNode | None = None
    """int32 scalar, K of the batch, if it differs between epochs. `partners` is then the largest one."""
    partners: int = 1
    """K if each member has another partner or resizes it."""


TYPES = {
    "partner": (types.INT32, 0),
    "partners": (types.INT32, 1),
    "constant": (types.FLOAT, 1),
    "box": (types.INT32, 2),
    "factors": (types.FLOAT, 2),
    "patch": (types.INT32, 2),
    "members": (types.INT32, 0),
    "lam": (types.FLOAT, 1),
}
"""dtype and number of dimensions of the inputs for a plan."""


def input_names(mix: MultiMix | MixSchedule) -> list[str]:
    """Return the names (keys of TYPES) of the inputs that plans of `mix` need."""
    fields = fields_of(mix)
    each = Field.RESIZED in fields or any(settings.partners == "each" for settings in mix.mixes)
    names = ["partners" if each else "partner", "constant"]
    names += ["box"] if fields & {Field.BOX, Field.RESIZED} else []
    names += ["factors"] if Field.SMOOTH in fields else []
    names += ["patch"] if Field.RESIZED in fields else []
    return [*names, *(["members"] if each and isinstance(mix, MixSchedule) else [])]


def input_arrays(plan: MixPlan, names: Sequence[str], size: Size, k: int) -> dict[str, NDArray[np.generic]]:
    """Return a plan's values for the inputs `names`: arrays of B rows. `size` is that of the images, `k` the largest K."""
    arrays: dict[str, NDArray[np.generic]] = {
        "partner": plan.partner.astype(np.int32),
        "constant": plan.constant,
        "box": plan.box,
    }
    arrays |= {"lam": plan.lam, "members": np.full(len(plan), plan.k, dtype=np.int32)}
    padding = ((0, 0), (0, k - plan.k))
    if "partners" in names:
        arrays["partners"] = np.pad(plan.member_partner.astype(np.int32), padding, mode="edge")
    if "factors" in names:  # None in a batch in which no pair is smooth
        zeros = np.zeros((*plan.lam.shape, sum(size)), dtype=np.float32)
        arrays["factors"] = zeros if plan.factors is None else plan.factors
    if "patch" in names:
        patch = np.concatenate([plan.box[..., :2], plan.box[..., 2:] - plan.box[..., :2]], axis=-1)
        shown = (plan.field == Field.RESIZED)[:, None] & (patch[..., 2:] > 0).all(axis=-1)
        patch = np.where(shown[..., None], patch, np.array([0, 0, *size], dtype=np.int32))
        arrays["patch"] = np.pad(patch, (*padding, (0, 0)), mode="edge")
    return {name: arrays[name] for name in names}


def mix_nodes(mix: MultiMix | MixSchedule, inputs: Mapping[str, DataNode]) -> MixNodes:
    """Return the nodes of a graph that mixes by `mix`; inputs: those of `input_names`."""
    each = "partners" in inputs
    return MixNodes(
        inputs["partners" if each else "partner"],
        inputs["constant"],
        box=inputs.get("box"),
        factors=inputs.get("factors"),
        patch=inputs.get("patch"),
        members=inputs.get("members"),
        partners=mix.k if each else 1,
    )


def mix_images(
    images: DataNode,
    mix: MixNodes,
    size: Size | None = None,
    layout: ImageLayout | None = None,
    resized: DataNode | None = None,
) -> DataNode:
    """Return w_k * x + (1 - w_k) * z_k for the weight fields of `mix`: float32 (K, *shape) for each image.

    images: float32 with three dimensions. `size` and `layout` describe them, and are required unless all fields are constant.
    resized: `resized_partners` of the images, required if `mix` has patches.
    """
    weight = fn.reshape(_on(images, mix.constant), shape=[-1, 1, 1, 1])
    if mix.box is not None:
        weight = weight * _outside(_on(images, mix.box), size, layout, images.device)
    if mix.factors is not None:
        weight = weight * _smooth(_on(images, mix.factors), size, layout)
    return _blend(images, mix, weight, resized)


def resized_partners(pixels: DataNode, mix: MixNodes, size: Size) -> DataNode:
    """Return z_k, (K, H, W, C) for each image: x' resized to the member's patch, and 0 around it.

    pixels: (H, W, C). uint8 pixels are rounded to uint8, float ones are not.
    """
    members = []
    for k in range(mix.partners):
        patch = fn.reshape(fn.slice(mix.patch, start=k, shape=1, axes=[0]), shape=[4])
        corner = fn.slice(patch, start=0, shape=2, axes=[0])
        sides = fn.slice(patch, start=2, shape=2, axes=[0])
        other = fn.permute_batch(pixels, indices=mix.partner[k])
        small = fn.resize(
            other, size=fn.cast(sides, dtype=types.FLOAT), interp_type=types.INTERP_LINEAR, antialias=True
        )
        # slicing beyond the edges pads: a paste would need uint8
        window = fn.slice(
            small, start=-corner, shape=list(size), axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
        )
        members.append(window)
    return fn.stack(*members, axis_name="F")


def mix_targets(labels: DataNode, mix: MixNodes, lam: DataNode, num_classes: int, multilabel: bool) -> DataNode:
    """Return lam_k * y + (1 - lam_k) * y' for one-hot y: float32 (K, num_classes) for each label.

    labels: class ids, int scalars or (1,); with `multilabel` y itself, (num_classes,). lam: float32 (K,).
    """
    rows = _label_rows(labels, num_classes, multilabel)
    return _blend(rows, mix, fn.reshape(_on(rows, lam), shape=[-1, 1]))


def _label_rows(labels: DataNode, num_classes: int, multilabel: bool) -> DataNode:
    if multilabel:
        return fn.reshape(fn.cast(labels, dtype=types.FLOAT), shape=[num_classes])
    labels = fn.reshape(labels, shape=[])
    one_hot = fn.one_hot(labels, num_classes=num_classes, dtype=types.FLOAT)
    # for a label without a class, one_hot leaves zeros, which a loss would accept
    if labels.device == "cpu":  # the slice is [1], or an error with the label as slice_anchor
        ones = types.Constant(np.ones(num_classes, dtype=np.float32), device="cpu")
        valid = fn.slice(ones, start=fn.cast(labels, dtype=types.INT32), shape=1, axes=[0])
    else:  # nothing can raise on a GPU: 0 / 0 is NaN
        valid = fn.cast((labels >= 0) & (labels < num_classes), dtype=types.FLOAT)
    return one_hot / valid


def _on(other: DataNode, node: DataNode) -> DataNode:
    return node.gpu() if other.device == "gpu" else node


def _blend(samples: DataNode, mix: MixNodes, weight: DataNode, other: DataNode | None = None) -> DataNode:
    if other is None and mix.partners == 1:
        other = fn.expand_dims(fn.permute_batch(samples, indices=mix.partner), axes=[0])
    elif other is None:
        other = fn.stack(*(fn.permute_batch(samples, indices=mix.partner[k]) for k in range(mix.partners)))
    if mix.members is not None:
        other = fn.slice(other, start=0, shape=fn.reshape(mix.members, shape=[1]), axes=[0])
    return weight * fn.expand_dims(samples, axes=[0]) + (np.float32(1) - weight) * other


def _outside(box: DataNode, size: Size | None, layout: ImageLayout | None, device: str) -> DataNode:
    """Return 1 outside each member's box and 0 inside: float32 (K, ...), all other axes but height and width of length 1."""
    assert size is not None
    y_axis = _y_axis(layout)
    y, x = (_positions(side, axis, device) for side, axis in zip(size, (y_axis, y_axis + 1), strict=True))
    y0, x0, y1, x1 = (fn.reshape(fn.slice(box, start=i, shape=1, axes=[1]), shape=[-1, 1, 1, 1]) for i in range(4))
    inside = ((y >= y0) & (y < y1)) & ((x >= x0) & (x < x1))
    return np.float32(1) - fn.cast(inside, dtype=types.FLOAT)


def _smooth(factors: DataNode, size: Size | None, layout: ImageLayout | None) -> DataNode:
    """Return 1 - g_y * g_x: float32 (K, ...), as `_outside`."""
    assert size is not None
    (height, width), y_axis = size, _y_axis(layout)
    lines = fn.slice(factors, start=0, shape=height, axes=[1])
    columns = fn.slice(factors, start=height, shape=width, axes=[1])
    lines, columns = (
        fn.reshape(part, shape=[-1, *(side if i == axis else 1 for i in range(1, 4))])
        for part, side, axis in ((lines, height, y_axis), (columns, width, y_axis + 1))
    )
    return np.float32(1) - lines * columns


def _y_axis(layout: ImageLayout | None) -> int:
    return 2 if layout == "CHW" else 1


def _positions(side: int, axis: int, device: str) -> DataNode:
    shape = [side if i == axis else 1 for i in range(4)]
    return types.Constant(np.arange(side, dtype=np.int32).reshape(shape), device=device)


def multi_mix(
    images: DataNode,
    labels: DataNode,
    *,
    num_classes: int,
    multilabel: bool = False,
    k: int = 5,
    alpha: Alpha = 1.0,
    method: str | Method | Mapping[str | Method, float] = "mixup",
    sampling: Sampling = "iid",
    lam_per: LamPer = "pair",
    partners: Partners = "same",
    crops: Crops = "same",
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
        labels: class ids in [0, num_classes), int scalars or (1,). For those of `readers.webdataset`, see `class_id`. Any
            other label is an error on a CPU; on a GPU the target rows of its pairs are NaN, and so is their loss.
        multilabel: whether the labels are rows (num_classes,) of 0 and 1, of any numeric type.
        k, alpha, method, sampling, lam_per, partners, pairing, prob: as in `MultiMix`.
        crops: only "same", because the images are cropped already.
        size, layout: (height, width) of the images, and "CHW" or "HWC"; required for every method except "mixup".
        seed, rank, world_size: the draws are keyed by (seed, the pipeline's epoch, iteration * world_size + rank).

    Returns:
        images: samples (K, *shape) float32, on the images' device;
        targets: samples (K, num_classes) float32 whose rows sum to 1 (with `multilabel` they need not), on the labels' device.

    Raises ConfigError for an invalid argument, or outside a pipeline definition. Every batch must have `max_batch_size` samples,
    as those of DALI's readers have.

    >>> @pipeline_def(batch_size=64, num_threads=4, device_id=0)
    ... def training():
    ...     encoded, cls = fn.readers.webdataset(paths="train-000.tar", ext=["jpg", "cls"], random_shuffle=True)
    ...     images = fn.decoders.image_random_crop(encoded, device="mixed")
    ...     images = fn.crop_mirror_normalize(fn.resize(images, size=[224, 224]), dtype=types.FLOAT)
    ...     return multi_mix(images, class_id(cls).gpu(), num_classes=1000, k=5, alpha=1.0)
    """
    mix = MultiMix(
        k=k,
        alpha=alpha,
        method=method,
        sampling=sampling,
        lam_per=lam_per,
        partners=partners,
        crops=crops,
        pairing=pairing,
        prob=prob,
    )
    if mix.crops != "same":
        raise ConfigError(
            f'multi_mix gets images that are cropped already and needs crops="same"; found crops={crops!r}. Use '
            'open_loader(backend="dali"), which decodes each image once for K crops'
        )
    check_int("num_classes", num_classes, 1)
    check_bool("multilabel", multilabel)
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("world_size", world_size, 1)
    check_int("rank", rank, 0, world_size - 1)
    if layout is not None:
        check_choice("layout", layout, ("CHW", "HWC"))
    size = None if size is None else check_height_width("size", size)
    if any(choice.method.field is not Field.CONSTANT for choice in mix.choices) and (size is None or layout is None):
        raise ConfigError(f'method={method!r} needs size=(height, width) and layout="CHW" or "HWC" of the images')
    pipeline = Pipeline.current()
    if pipeline is None:
        raise ConfigError(
            "multi_mix must be called while a DALI pipeline is being defined (inside a @pipeline_def function)"
        )
    names = [*input_names(mix), "lam"]
    drawn = fn.external_source(
        source=_draws(mix, names, seed, rank, world_size, int(pipeline.max_batch_size), size or (1, 1)),
        num_outputs=len(names),
        batch=True,
        batch_info=True,
        dtype=[TYPES[name][0] for name in names],
        ndim=[TYPES[name][1] for name in names],
    )
    inputs = dict(zip(names, drawn, strict=True))
    nodes = mix_nodes(mix, inputs)
    resized = None
    if nodes.patch is not None:
        assert size is not None
        pixels = images if layout == "HWC" else fn.transpose(images, perm=[1, 2, 0], transpose_layout=True)
        z = resized_partners(fn.reinterpret(pixels, layout="HWC"), nodes, size)
        resized = fn.cast(z if layout == "HWC" else fn.transpose(z, perm=[0, 3, 1, 2]), dtype=types.FLOAT)
    # DALI has no float16 arithmetic on a CPU, and float64 would stay float64
    images = fn.cast(images, dtype=types.FLOAT)
    targets = mix_targets(labels, nodes, inputs["lam"], num_classes, multilabel)
    return mix_images(images, nodes, size, layout, resized), targets


def _draws(
    mix: MultiMix, names: list[str], seed: int, rank: int, world_size: int, rows: int, size: Size
) -> Callable[[types.BatchInfo], list[NDArray[np.generic]]]:
    def draw(info: types.BatchInfo) -> list[NDArray[np.generic]]:
        start = (info.iteration * world_size + rank) * rows
        arrays = input_arrays(draw_mixing(mix, seed, info.epoch_idx, start, rows, size), names, size, mix.k)
        return [arrays[name] for name in names]

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
