"""Checks of what DALI can decode: headers before they enter a pipeline, and whole images for `verify`."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from nvidia import nvimgcodec
from nvidia.dali import Pipeline, fn, types

from multimix_pipe.runtime.bad_samples import Encoded, Replacements, Unusable
from multimix_pipe.shards.index import Index

logger = logging.getLogger("multimix_pipe")

NVJPEG = (13, 2)
"""The first nvJPEG version that decodes regions with fancy upsampling of chroma."""

HEADER = 4096
"""Bytes of an image whose checksum identifies its header; in most images they contain all of it."""

MAX_PIXELS_TOGETHER = 2**25
"""Limit of the pixels decoded together: 100 MB per thread."""


def header_problem(encoded: NDArray[np.uint8], height: int, width: int) -> str | None:
    """Return why an image, indexed as (height, width), must not enter DALI, or None. A wrong header can crash a pipeline."""
    try:
        stream = nvimgcodec.CodeStream(encoded)
        found = int(stream.height), int(stream.width)
        if not stream.num_channels:  # a damaged BMP, which the parser accepts and the decoder crashes on
            return "DALI finds no channels in its header"
    except Exception as error:  # the parser raises RuntimeError and others
        return f"DALI cannot parse its header: {error}".strip()
    if found != (height, width):
        return f"its header says {found[1]}x{found[0]} pixels, the index {width}x{height}"
    return None


def undecodable_row(error: RuntimeError) -> int:
    """Return the row of the batch that DALI's decoder failed on. Raises `error` itself if it is of another kind."""
    match = re.search(r"decode sample #(\d+)", str(error))
    if match is None:
        raise error
    return int(match[1])


def gpu_problem(device_id: int) -> str | None:
    """Return why DALI cannot run on a GPU, or None. If the driver is too old, DALI imports but fails at the first batch."""
    if device_id in _gpus:
        return None
    try:
        pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
        with pipeline:
            pipeline.set_outputs(types.Constant(np.zeros(1, dtype=np.float32), device="gpu") + np.float32(1))
        pipeline.build()
        pipeline.run()
    except RuntimeError as error:
        return " ".join(str(error).split())
    _gpus.add(device_id)
    return None


_gpus: set[int] = set()  # those that DALI is known to run on


def nvjpeg_version() -> tuple[int, int] | None:
    """Return (major, minor) of the nvJPEG that DALI uses in this process, or None if DALI has loaded none."""
    try:
        library = ctypes.CDLL(f"libnvjpeg.so.{nvimgcodec.__cuda_version__ // 1000}", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None
    number = ctypes.c_int()
    numbers = []
    for part in (0, 1):  # MAJOR_VERSION, MINOR_VERSION
        library.nvjpegGetProperty(part, ctypes.byref(number))
        numbers.append(number.value)
    return numbers[0], numbers[1]


def decodes_regions() -> bool:
    """Whether nvJPEG decodes regions with fancy upsampling of chroma. If not, this is logged as a warning.

    DALI would decode such regions on the CPU, and print a warning for each.
    """
    found = nvjpeg_version()
    if found is None or found >= NVJPEG:
        return True
    name = "nvJPEG {}.{}".format(*found)
    logger.warning(
        "%s; %s or newer is needed to decode only the crops of JPEGs on the GPU, so they are decoded as a whole, which is slower",
        f"torchvision has loaded its own {name}: import nvidia.dali before torchvision"
        if "torchvision" in sys.modules
        else f"{name} was found: pip install 'multimix-pipe[dali]', for CUDA 13, has a newer one",
        "{}.{}".format(*NVJPEG),
    )
    return False


class HeaderCheck:
    """Checks the headers of samples. Each is parsed once, and afterwards recognised by a checksum of its bytes."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._passed = np.zeros(len(index), dtype=np.uint32)  # checksums; 0: not parsed yet

    def checked(self, replacements: Replacements, row: int, encoded: Encoded | Unusable) -> Encoded:
        """Return a row's bytes, or those of a replacement if they must not enter DALI."""

        def check(row: int, encoded: Encoded) -> Encoded | Unusable:
            problem = self.problem(int(replacements.step.sample[row]), encoded)
            return encoded if problem is None else Unusable(problem)

        return replacements.use(row, encoded, check)

    def problem(self, sample_id: int, encoded: NDArray[np.uint8]) -> str | None:
        """Return why a sample's bytes must not enter DALI, or None."""
        checksum = crc32(encoded[:HEADER].data)
        if checksum == self._passed[sample_id]:
            return None
        reason = header_problem(encoded, int(self._index.height[sample_id]), int(self._index.width[sample_id]))
        self._passed[sample_id] = checksum if reason is None else 0
        return reason


class DaliDecodeCheck:
    """Checks whether DALI can decode images. Thread-safe: each thread has its own pipeline."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._threads = threading.local()

    def __call__(self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]) -> list[str | None]:
        """Return, for each of at most `max_images` images of the indexed (height, width), why DALI cannot decode it, or None."""
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
        """Decode the images with indices `left`, and set the reasons of those that cannot be decoded."""
        while left:
            pipeline = self._pipeline()
            pipeline.feed_input("encoded", [images[i] for i in left])
            pipeline.schedule_run()
            try:
                pipeline.outputs()
                return
            except RuntimeError as error:
                del self._threads.pipeline  # any error breaks it
                reasons[left.pop(undecodable_row(error))] = "DALI cannot decode it"

    def _pipeline(self) -> Pipeline:
        if not hasattr(self._threads, "pipeline"):
            pipeline = Pipeline(batch_size=self._max_images, num_threads=1, device_id=None, prefetch_queue_depth=1)
            with pipeline:
                encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
                pipeline.set_outputs(fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False))
            pipeline.build()
            self._threads.pipeline = pipeline
        return self._threads.pipeline
