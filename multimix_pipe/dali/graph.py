"""The DALI graph of a loader: encoded bytes and a step's windows in, pixels out: cropped, resized, mirrored, uint8.

One definition for CPU and GPU; everything random comes in through the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode

from multimix_pipe.config import TrainTransform, Transform
from multimix_pipe.dali.orientation import stored_sizes, stored_windows, turns
from multimix_pipe.plan import StepPlan
from multimix_pipe.shards.index import Index


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
        return pipeline

    def inputs(self, step: StepPlan, index: Index) -> dict[str, NDArray[np.generic]]:
        """A step's values of all inputs but "encoded", arrays of B rows."""
        window, turning = step.window, {}
        if self.exif:
            turned, size = index.orientation[step.sample], self.transform.height_width
            window = stored_windows(window, turned, index.height[step.sample], index.width[step.sample])
            turning = {"size": stored_sizes(turned, *size), "turn": turns(turned, *size)}
        corner, extent = window[:, :2], window[:, 2:]
        arrays: dict[str, NDArray[np.generic]]
        if self._trains:
            arrays = {
                "corner": corner.astype(np.int32),
                "extent": extent.astype(np.int32),
                "flip": step.flip.astype(np.int32),
            }
        else:
            arrays = {"corner": np.ascontiguousarray(corner), "end": corner + extent}
        return arrays | turning

    @property
    def _trains(self) -> bool:
        return isinstance(self.transform, TrainTransform)

    def _define(self) -> DataNode:
        # DALI refers to these arrays, and so keeps them, until it has decoded them
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
        images = self._random_crop(encoded) if self._trains else self._centre_crop(encoded)
        if self.exif:
            images = self._turn(images)
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.external_source(name="flip", dtype=types.INT32, ndim=0) if self._trains else 0,
            output_layout="HWC" if self.channels_last else "CHW",
            dtype=types.UINT8,
        )

    def _random_crop(self, encoded: DataNode) -> DataNode:
        images = fn.decoders.image_slice(
            encoded,
            start=fn.external_source(name="corner", dtype=types.INT32, ndim=1),
            shape=fn.external_source(name="extent", dtype=types.INT32, ndim=1),
            axes=[0, 1],
            **self._decoding,
        )
        return self._resize(images)

    def _centre_crop(self, encoded: DataNode) -> DataNode:
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
