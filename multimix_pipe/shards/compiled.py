"""Loops that open many files and read many samples, compiled by Numba: each releases the GIL once for all of them.

Importing this module imports Numba.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

AVAILABLE = hasattr(ctypes.CDLL(None), "statx")
"""Whether `read_rows` can run: it needs the Linux call statx (glibc 2.28, musl 1.2.5, or newer)."""


def jit(function: Any) -> Any:
    """Compile without fused multiply-adds, to run without the GIL; cache the machine code if the folder is writable."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(**options)(function)


_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_statx: Any = types.ExternalFunction(
    "statx", types.int32(types.int32, types.uintp, types.int32, types.uint32, types.uintp)
)
_usleep: Any = types.ExternalFunction("usleep", types.int32(types.uint32))
_open: Any = types.ExternalFunction("open", types.int32(types.uintp, types.int32))
_close: Any = types.ExternalFunction("close", types.int32(types.int32))
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uintp))


@intrinsic  # type: ignore[untyped-decorator]
def _load(typing_context: Any, address: Any) -> Any:
    """Load the byte at an address atomically, as another thread may change it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()), "monotonic", 1)

    return types.uint8(types.uintp), generate


# struct statx of Linux, the same on every architecture
_STATX_BYTES, _SIZE_AT, _SECONDS_AT, _NANOSECONDS_AT = 256, 40, 112, 120
_AT_EMPTY_PATH, _SIZE_AND_MTIME = 0x1000, 0x240
_CLOCK_MONOTONIC = 1
_TO_READ = os.O_RDONLY | os.O_CLOEXEC


@jit
def _nanoseconds() -> Any:
    now = np.zeros(2, dtype=np.int64)
    _clock_gettime(_CLOCK_MONOTONIC, np.uint64(now.ctypes.data))
    return now[0] * 1_000_000_000 + now[1]


@jit
def exchange(closing: Any, names: Any, start: Any, pause_us: int, opened: Any) -> None:
    """Close descriptors, then open files for reading.

    Args:
        closing: int32, descriptors.
        names: uint8, the names of the files, each ending with a zero byte.
        start: (n,) int64, start of each name.
        pause_us: microseconds to wait before each opening.
        opened: (n,) int32, output: their descriptors, -1 for one that cannot be opened.
    """
    for descriptor in closing:
        _close(descriptor)
    for i in range(len(start)):
        if pause_us:
            _usleep(pause_us)
        opened[i] = _open(np.uint64(names.ctypes.data + start[i]), _TO_READ)


@jit
def read_rows(
    files: Any,
    file_of: Any,
    offset: Any,
    size: Any,
    start: Any,
    memory: Any,
    pause_us: int,
    stop: Any,
    got: Any,
    stamp: Any,
) -> Any:
    """Read rows into `memory`, then get the size and modification time of their files. Returns the reads' nanoseconds.

    Args:
        files: (F,) int32, file descriptors.
        file_of: (n,) int64, the index in `files` of each row.
        offset, size: (n,) int64, where a row's bytes start in its file, and their number.
        start: (n,) int64, where they start in `memory`.
        memory: (N,) uint8, output.
        pause_us: microseconds to sleep before each read, with which benchmarks simulate slow storage.
        stop: (1,) uint8; once it is 1, the remaining rows are not read.
        got: (n,) int64, output: bytes read for each row.
        stamp: (F, 2) int64, output: size in bytes and modification time in ns of each file; the size is -1 on an error.
    """
    address = memory.ctypes.data
    began = _nanoseconds()
    for i in range(len(file_of)):
        got[i] = 0
        if _load(np.uint64(stop.ctypes.data)):
            continue
        if pause_us:
            _usleep(pause_us)
        while got[i] < size[i]:
            n = _pread(
                files[file_of[i]],
                np.uint64(address + start[i] + got[i]),
                np.uint64(size[i] - got[i]),
                offset[i] + got[i],
            )
            if n <= 0:  # error, interrupt or end of file: reading the row again shows which
                break
            got[i] += n
    spent = _nanoseconds() - began
    status = np.zeros(_STATX_BYTES, dtype=np.uint8)
    empty_path = np.zeros(1, dtype=np.uint8)
    for f in range(len(files)):
        path, answer = np.uint64(empty_path.ctypes.data), np.uint64(status.ctypes.data)
        failed = _statx(files[f], path, _AT_EMPTY_PATH, _SIZE_AND_MTIME, answer)
        stamp[f, 0] = -1 if failed else status[_SIZE_AT : _SIZE_AT + 8].view(np.int64)[0]
        seconds = status[_SECONDS_AT : _SECONDS_AT + 8].view(np.int64)[0]
        stamp[f, 1] = seconds * 1_000_000_000 + status[_NANOSECONDS_AT : _NANOSECONDS_AT + 4].view(np.uint32)[0]
    return spent
