"""What DALI can decode: headers that may enter a pipeline, the row that an error names, and whole images for `verify`."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.nvimgcodec import CodeStream

from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.shards.index import Index

logger = logging.getLogger("multimix_pipe")

NVJPEG = (13, 2)
"""The first nvJPEG that decodes regions with smooth upsampling of chroma."""

HEADER = 4096
"""Bytes of an image by whose checksum a header is known again: in most images they hold it all."""

MAX_PIXELS_TOGETHER = 2**25
"""Of images that are decoded together: 100 MB a thread."""


def header_problem(encoded: NDArray[np.uint8], height: int, width: int) -> str | None:
    """Why these bytes, whose index says (height, width), must not enter DALI: a pipeline may not survive a wrong header."""
    try:
        stream = CodeStream(encoded)
        found = int(stream.height), int(stream.width)
        if not stream.num_channels:  # of a damaged BMP: what crashes on it comes after the parser
            return "DALI finds no channels in its header"
    except Exception as error:  # the parser's errors are plain RuntimeErrors and more
        return f"no header that DALI can parse: {error}".strip()
    if found != (height, width):
        return f"its header says {found[1]}x{found[0]} pixels, its index {width}x{height}"
    return None


def undecodable_row(error: RuntimeError) -> int:
    """The row of the batch that DALI's decoder failed at; raises `error` where it is of another kind."""
    named = re.search(r"decode sample #(\d+)", str(error))
    if named is None:
        raise error
    return int(named[1])


@cache
def gpu_problem(device_id: int) -> str | None:
    """Why DALI cannot run on a GPU, or None. On a driver that is too old it imports, and fails at the first batch."""
    try:
        pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
        with pipeline:
            pipeline.set_outputs(types.Constant(np.zeros(1, dtype=np.float32), device="gpu") + np.float32(1))
        pipeline.build()
        pipeline.run()
    except RuntimeError as error:
        return " ".join(str(error).split())
    return None


def warn_of_old_nvjpeg() -> None:
    """Log a warning where nvJPEG cannot decode regions with smooth chroma: then each such JPEG is decoded on the CPU."""
    for package in ("nvidia-nvjpeg", "nvidia-nvjpeg-cu12"):
        with suppress(PackageNotFoundError):
            found = version(package)
            if tuple(map(int, found.split(".")[:2])) < NVJPEG:
                logger.warning(
                    "%s %s decodes crops of most JPEGs on the CPU; %d.%d or newer, which comes with DALI for CUDA 13 "
                    "(pip install 'multimix-pipe[dali]'), decodes them on the GPU",
                    *(package, found, *NVJPEG),
                )
            return


class HeaderCheck:
    """Checks the headers of an index's samples: each is parsed once, and then known by a checksum of its bytes."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._passed = np.zeros(len(index), dtype=np.uint32)  # checksums; 0: not parsed yet

    def checked(self, replacements: Replacements, row: int, encoded: Encoded | Unusable) -> Encoded:
        """A row's bytes, or another sample's in place of one that must not enter DALI."""

        def check(row: int, encoded: Encoded) -> Encoded | Unusable:
            problem = self.problem(int(replacements.step.sample[row]), encoded)
            return encoded if problem is None else Unusable(problem)

        return replacements.use(row, encoded, check)

    def problem(self, sample: int, encoded: NDArray[np.uint8]) -> str | None:
        """Why these bytes of a sample must not enter DALI, or None."""
        checksum = crc32(encoded[:HEADER].data)
        if checksum == self._passed[sample]:
            return None
        reason = header_problem(encoded, int(self._index.height[sample]), int(self._index.width[sample]))
        self._passed[sample] = checksum if reason is None else 0
        return reason


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
