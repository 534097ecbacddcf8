"""The DALI graph of a loader: encoded bytes and a step's windows in, pixels out: cropped, resized, mirrored, uint8.

One definition for CPU and GPU; everything random comes in through the inputs.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from multimix_pipe.config import TrainTransform, Transform
from multimix_pipe.dali.orientation import stored_sizes, stored_windows, turns
from multimix_pipe.plan import StepPlan
from multimix_pipe.shards.index import Index

Inputs = dict[str, NDArray[np.generic]]

_built: WeakSet[Pipeline] = WeakSet()


def _abandon() -> None:
    """In a forked child: never end the parent's pipelines. DALI would wait for threads that are not there, and die of it.

    DALI ends all pipelines at exit, and has no public way to let go of one.
    """
    for pipeline in _built:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline._pipe))  # its destructor, too, must not run
        pipeline._pipe = None


os.register_at_fork(after_in_child=_abandon)


@dataclass(frozen=True)
class Graph:
    """What distinguishes one graph from another; `build` makes the pipeline."""

    batch_size: int
    device_id: int | None
    """A GPU's number, or None to run on the CPU alone."""
    num_threads: int
    prefetch: int
    transform: Transform
    exif: bool
    channels_last: bool
    resizes: bool
    """Resize, turn and mirror in the graph: outputs are (B, C, H, W) or (B, H, W, C). Else they are the windows, as decoded."""

    def build(self) -> Pipeline:
        """A built pipeline whose inputs are those of `inputs`."""
        pipeline = Pipeline(
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            device_id=self.device_id,
            prefetch_queue_depth=self.prefetch,
        )
        with pipeline:
            pipeline.set_outputs(self._define())
        pipeline.build()
        _built.add(pipeline)
        return pipeline

    def inputs(self, step: StepPlan, index: Index) -> Inputs:
        """A step's values of all inputs but "encoded", arrays of B rows."""
        window = step.window
        turning: Inputs = {}
        if self.exif:
            turned, size = index.orientation[step.sample], self.transform.height_width
            window = stored_windows(window, turned, index.height[step.sample], index.width[step.sample])
            turning = {"size": stored_sizes(turned, *size), "turn": turns(turned, *size)}
        corner, extent = window[:, :2], window[:, 2:]
        if not self._trains:
            centre: Inputs = {"corner": np.ascontiguousarray(corner), "end": corner + extent}
            return centre | turning
        arrays: Inputs = {"corner": corner.astype(np.int32), "extent": extent.astype(np.int32)}
        return arrays | {"flip": step.flip.astype(np.int32)} | turning if self.resizes else arrays

    @property
    def _trains(self) -> bool:
        return isinstance(self.transform, TrainTransform)

    def _define(self) -> DataNode:
        # DALI refers to these arrays, and so keeps them, until it has decoded them
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
        if self._trains:
            images = self._window(encoded)
            if not self.resizes:
                return images
            images = self._resize(images)
        else:
            images = self._resized_centre(encoded)
        if self.exif:
            images = self._turn(images)
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.external_source(name="flip", dtype=types.INT32, ndim=0) if self._trains else 0,
            output_layout="HWC" if self.channels_last else "CHW",
            dtype=types.UINT8,
        )

    def _window(self, encoded: DataNode) -> DataNode:
        return fn.decoders.image_slice(
            encoded,
            start=fn.external_source(name="corner", dtype=types.INT32, ndim=1),
            shape=fn.external_source(name="extent", dtype=types.INT32, ndim=1),
            axes=[0, 1],
            **self._decoding,
        )

    def _resized_centre(self, encoded: DataNode) -> DataNode:
        # a window that cuts through pixels is the resampler's to take: a decoder's would be rounded
        return self._resize(
            fn.decoders.image(encoded, **self._decoding),
            roi_start=fn.external_source(name="corner", dtype=types.FLOAT, ndim=1),
            roi_end=fn.external_source(name="end", dtype=types.FLOAT, ndim=1),
        )

    def _resize(self, images: DataNode, **roi: DataNode) -> DataNode:
        size = [float(side) for side in self.transform.height_width]
        if self.exif:
            size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
        return fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=self.transform.antialias, **roi)

    def _turn(self, images: DataNode) -> DataNode:
        # mirrors and swaps of axes take whole pixels to whole pixels: the nearest one is exact
        turn = fn.external_source(name="turn", dtype=types.FLOAT, ndim=2)
        size = [float(side) for side in self.transform.height_width]
        return fn.warp_affine(images, turn, size=size, inverse_map=True, interp_type=types.INTERP_NN)

    @property
    def _decoding(self) -> dict[str, Any]:
        options: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}
        if self.device_id is None:
            return {"device": "cpu", **options}
        return {"device": "mixed", "jpeg_fancy_upsampling": True, **options}  # chroma as on the CPU
