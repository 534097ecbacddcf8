"""The loader's DALI graph, from encoded bytes and a step's plan to images. The CPU and the GPU share one definition.

All random values come in through the inputs. `Graph.ends` says how far the graph goes; the rest is done behind it:

    batch    decode -> crop -> resize -> flip -> normalise -> multi_mix -> cast       the images of the batch
    pixels   decode -> crop -> resize -> flip                                         uint8, for the mix stage
    window   decode -> crop                                                           uint8, as stored: the host resizes too

With crops="each" the decoder gives the part of an image that encloses its K crops. "pixels" then has K branches behind it, and
"batch" is not available.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from multimix_pipe.augment.crop import enclosing_windows
from multimix_pipe.config import Transform
from multimix_pipe.dali.orientation import stored_sizes, stored_windows, turns
from multimix_pipe.dali.stage import TYPES, input_arrays, input_names, mix_images, mix_nodes, resized_partners
from multimix_pipe.mixing import MixSchedule, MultiMix
from multimix_pipe.plan import StepPlan
from multimix_pipe.shards.index import Index

Ends = Literal["batch", "pixels", "window"]
Inputs = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Graph:
    """The parameters of a graph; `build` makes the pipeline."""

    batch_size: int
    device_id: int | None
    """The GPU, or None to run on the CPU alone."""
    num_threads: int
    prefetch: int
    """Batches in DALI's queue: the requested one, and those ahead of it."""
    transform: Transform
    exif: bool
    channels_last: bool
    ends: Ends
    """The outputs: float (B, K, ...) or (B, ...); uint8 (B, C, H, W) or (B, H, W, C), or (B, crops, ...) with several crops; or
    uint8 windows of any size."""
    crops: int = 1
    """Crops of each decoded image: K with crops="each"."""
    mix: MultiMix | MixSchedule | None = None
    """The mixing of a graph that ends with the batch, or None."""
    hw_decoder_load: float = 0.65
    """Share of a batch that the GPU's JPEG hardware decodes. CUDA kernels decode the rest, with slightly different pixels."""
    decodes_regions: bool = True
    """Whether the decoder decodes only the windows of a training. Otherwise they are cut out of whole images."""
    half: bool = False
    """Whether the batch is float16. Otherwise it is float32, as DALI has no bfloat16."""

    def build(self) -> Pipeline:
        """Return a built pipeline, whose inputs are "encoded" and those of `inputs`."""
        pipeline = loader_graph(
            self,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            device_id=self.device_id,
            prefetch_queue_depth=self.prefetch,
        )
        pipeline.build()
        _built.add(pipeline)
        return pipeline

    def inputs(self, step: StepPlan, index: Index) -> Inputs:
        """Return a step's values for all inputs except "encoded": arrays of B rows."""
        window, arrays = step.window.reshape(-1, 4), Inputs()
        if self.exif:
            orientation, size = index.orientation[step.sample], self.transform.height_width
            arrays |= {"size": stored_sizes(orientation, *size), "turn": turns(orientation, *size)}
            sample = np.repeat(step.sample, step.crops)
            window = stored_windows(window, index.orientation[sample], index.height[sample], index.width[sample])
        if step.crops > 1:
            crops = window.reshape(-1, step.crops, 4)
            window = enclosing_windows(crops)
            arrays["corners"] = (crops[..., :2] - window[:, None, :2]).astype(np.int32)
            arrays["extents"] = crops[..., 2:].astype(np.int32)
        corner, extent = window[:, :2], window[:, 2:]
        if self.transform.random:
            arrays |= {"corner": corner.astype(np.int32), "extent": extent.astype(np.int32)}
            arrays["flip"] = (step.flip if step.crops > 1 else step.flip.reshape(-1)).astype(np.int32)
        else:
            arrays |= {"corner": np.ascontiguousarray(corner), "end": corner + extent}
        if self.mix is not None:
            arrays |= input_arrays(step.mix, input_names(self.mix), self.transform.height_width, self.mix.k)
        return {name: arrays[name] for name in self.input_names}

    @property
    def input_names(self) -> list[str]:
        """Names of all inputs except "encoded"."""
        names = ["corner", "extent" if self.transform.random else "end"]
        if self.ends != "window":
            names += ["size", "turn"] if self.exif else []
            names += ["flip"] if self.transform.random else []
            names += ["corners", "extents"] if self.crops > 1 else []
        if self.ends == "batch" and self.mix is not None:
            names += input_names(self.mix)
        return names


@pipeline_def  # type: ignore[untyped-decorator]
def loader_graph(graph: Graph) -> DataNode:
    """decode -> crop -> resize -> flip -> normalise -> multi_mix -> cast, as far as `graph.ends` says."""
    training, (height, width) = graph.transform.random, graph.transform.height_width
    layout: Literal["CHW", "HWC"] = "HWC" if graph.channels_last else "CHW"
    decoding: dict[str, Any] = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
    if graph.device_id is not None:
        # upsample chroma as on the CPU
        decoding |= {"device": "mixed", "jpeg_fancy_upsampling": True, "hw_decoder_load": graph.hw_decoder_load}

    # no_copy: DALI keeps references to the arrays until it has decoded them
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    region: dict[str, DataNode] = {}
    if training:
        start, shape = _input("corner", types.INT32, 1), _input("extent", types.INT32, 1)
        window: dict[str, Any] = {"start": start, "shape": shape, "axes": [0, 1]}
        if graph.decodes_regions:
            images = fn.decoders.image_slice(encoded, **window, **decoding)
        else:
            images = fn.slice(fn.decoders.image(encoded, **decoding), **window)
    else:  # the window may end within a pixel, so the resampler crops: a decoder would round it
        images = fn.decoders.image(encoded, **decoding)
        region = {"roi_start": _input("corner", types.FLOAT, 1), "roi_end": _input("end", types.FLOAT, 1)}
    if graph.ends == "window":
        return images

    size = _input("size", types.FLOAT, 1) if graph.exif else [float(height), float(width)]
    turn = _input("turn", types.FLOAT, 2) if graph.exif else None
    mirror: Any = _input("flip", types.INT32, int(graph.crops > 1)) if training else 0
    to_pixels: dict[str, Any] = {"output_layout": layout, "dtype": types.UINT8}

    def resize(images: DataNode) -> DataNode:
        images = fn.resize(
            images, size=size, interp_type=types.INTERP_LINEAR, antialias=graph.transform.antialias, **region
        )
        if turn is None:
            return images
        # flips and transpositions map pixels to pixels, so nearest-neighbour is exact
        return fn.warp_affine(
            images, turn, size=[float(height), float(width)], inverse_map=True, interp_type=types.INTERP_NN
        )

    if graph.crops > 1:
        assert graph.ends == "pixels", "crops of several members are mixed behind the graph"
        corners, extents = _input("corners", types.INT32, 2), _input("extents", types.INT32, 2)
        members = [
            resize(fn.slice(images, start=corners[k], shape=extents[k], axes=[0, 1])) for k in range(graph.crops)
        ]
        return fn.stack(
            *(fn.crop_mirror_normalize(member, mirror=mirror[k], **to_pixels) for k, member in enumerate(members))
        )
    images = resize(images)
    if graph.ends == "pixels":
        return fn.crop_mirror_normalize(images, mirror=mirror, **to_pixels)

    plan = None
    if graph.mix is not None:
        plan = mix_nodes(graph.mix, {name: _input(name, *TYPES[name]) for name in input_names(graph.mix)})
    mean, std = ([255 * value for value in values] for values in (graph.transform.mean, graph.transform.std))
    to_floats: dict[str, Any] = {"mean": mean, "std": std, "dtype": types.FLOAT}
    resized = None
    if plan is not None and plan.patch is not None:  # partners are resized as pixels, before they are normalised
        images = fn.crop_mirror_normalize(images, mirror=mirror, output_layout="HWC", dtype=types.UINT8)
        mirror, pixels = 0, resized_partners(images, plan, (height, width))
        resized = fn.crop_mirror_normalize(pixels, output_layout=f"F{layout}", **to_floats)
    images = fn.crop_mirror_normalize(images, mirror=mirror, output_layout=layout, **to_floats)
    if plan is not None:
        images = mix_images(images, plan, (height, width), layout, resized)
    return fn.cast(images, dtype=types.FLOAT16) if graph.half else images


def _input(name: str, dtype: types.DALIDataType, ndim: int) -> DataNode:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim)


_built: WeakSet[Pipeline] = WeakSet()


def _abandon() -> None:
    """In a forked child, keep DALI from ending the parent's pipelines: it would wait for threads that do not exist, and crash.

    DALI ends all pipelines at exit, and has no public way to release one without ending it.
    """
    for pipeline in _built:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline._pipe))  # its destructor, too, must not run
        pipeline._pipe = None


os.register_at_fork(after_in_child=_abandon)
