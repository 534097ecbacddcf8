"""Whether DALI can decode images in full, on the CPU: what `verify` asks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from multimix_pipe.dali.failures import header_problem, undecodable_row

MAX_PIXELS_TOGETHER = 2**25
"""Of images that are decoded together: 100 MB a thread."""


class DaliDecodeCheck:
    """Judges images; every thread may do so at once, each has a pipeline of its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads = threading.local()

    def __call__(self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]) -> list[str | None]:
        """Why DALI cannot decode each of at most `most` encoded images of indexed (height, width); None where it can."""
        reasons = [header_problem(image, *size) for image, size in zip(images, sizes, strict=True)]
        together: list[int] = []
        pixels = 0
        for i, (height, width) in enumerate(sizes):
            if reasons[i] is None:
                if together and pixels + height * width > MAX_PIXELS_TOGETHER:
                    self._decode(images, together, reasons)
                    together, pixels = [], 0
                together.append(i)
                pixels += height * width
        self._decode(images, together, reasons)
        return reasons

    def _decode(self, images: Sequence[NDArray[np.uint8]], left: list[int], reasons: list[str | None]) -> None:
        """Note the reasons of those among the images `left` that cannot be decoded."""
        while left:
            pipeline = self._pipeline()
            pipeline.feed_input("encoded", [images[i] for i in left])
            pipeline.schedule_run()
            try:
                pipeline.outputs()
                return
            except RuntimeError as error:
                del self._threads.pipeline  # it is lost with any error
                reasons[left.pop(undecodable_row(error))] = "DALI cannot decode it"

    def _pipeline(self) -> Pipeline:
        if not hasattr(self._threads, "pipeline"):
            pipeline = Pipeline(batch_size=self._most, num_threads=1, device_id=None, prefetch_queue_depth=1)
            with pipeline:
                encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
                pipeline.set_outputs(fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False))
            pipeline.build()
            self._threads.pipeline = pipeline
        return self._threads.pipeline
