"""What DALI cannot take: bytes that must not enter a pipeline, and the sample that an error of a pipeline means."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from nvidia.nvimgcodec import CodeStream


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
