"""The blend on a CPU, compiled by Numba: normalise, mix and round in one pass over memory. Importing this imports Numba.

Mixing on a CPU is bound by memory bandwidth: K rows are written for each image read. So a tile of both images is normalised into
buffers that fit into an L1 cache, mixed and rounded there, and written once with non-temporal stores, which bypass the caches
(an ordinary store first reads the cache line that it overwrites). bench/mix_stage.py measures this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.mixing import Field
from multimix_pipe.runtime.kernels.layout import Layout
from multimix_pipe.runtime.kernels.normalize import Normalize
from multimix_pipe.runtime.kernels.resize import interleaved, resized_partners
from multimix_pipe.runtime.tensors import MixTensors
from multimix_pipe.shards.compiled import jit

MIXERS = 4
"""Maximum number of threads: mixing is bound by memory bandwidth, which a few cores saturate."""

TILE = 1536
"""Elements mixed at a time: a multiple of the 3 channels and, in every dtype, of the 32 bytes of a store."""

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
KINDS = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
"""Codes of the result's dtype in the kernels."""

CONSTANT, BOX, SMOOTH, RESIZED = map(int, (Field.CONSTANT, Field.BOX, Field.SMOOTH, Field.RESIZED))

_STORE, _PAGE = 32, 4096  # bytes
_NOWHERE = np.zeros((0, 0), dtype=np.int64)
_memcpy: Any = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
_U32 = np.uint32  # Numba adds two uint32 as uint64, which halves the elements per vector


def _copying(**metadata: Any) -> Any:
    """Return an intrinsic (target, source) that copies 32 bytes between addresses.

    The source, and with metadata the target too, is aligned to 32 bytes.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def copy(typing_context: Any, target: Any, source: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, addresses: Any) -> Any:
            vector = ir.VectorType(ir.IntType(32), _STORE // 4).as_pointer()
            to_pointer, from_pointer = (builder.inttoptr(address, vector) for address in addresses)
            value = builder.load(from_pointer)
            value.align = _STORE
            store = builder.store(value, to_pointer)
            store.align = _STORE if metadata else 1
            for name, flag in metadata.items():
                store.set_metadata(name, builder.module.add_metadata([ir.Constant(ir.IntType(32), flag)]))
            return context.get_dummy_value()

        return numba.types.void(numba.types.uintp, numba.types.uintp), generate

    return copy


_copy_streaming = _copying(nontemporal=1)
_copy_cached = _copying()


@intrinsic  # type: ignore[untyped-decorator]
def _fence(typing_context: Any) -> Any:
    """Make earlier streaming stores visible before any later store, to other threads too."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba.types.void(), generate


@jit
def _buffer(size: int, target: int) -> Any:
    """Return `size` bytes, aligned to 32 bytes, to copy to `target` with streaming stores.

    They are at the same offset in a page as `target`: a load waits for earlier stores whose addresses agree in the last 12 bits.
    """
    memory = np.empty(size + _PAGE, dtype=np.uint8)
    skip = (target // _STORE * _STORE - memory.ctypes.data) % _PAGE
    return memory[skip : skip + size]


@jit
def _round_to_float16(values: Any, work: Any, n: int, result: Any) -> None:
    """Round to the nearest float16, ties to even, as bits. values, work: float32 (>= n,); result: uint16 (>= n,)."""
    bits, small = values.view(np.uint32), work.view(np.uint32)
    for i in range(n):
        work[i] = abs(values[i]) + np.float32(0.5)  # this addition rounds subnormal results
    for i in range(n):
        magnitude = _U32(bits[i] & _U32(0x7FFFFFFF))
        odd = _U32(_U32(magnitude >> _U32(13)) & _U32(1))
        normal = _U32(_U32(_U32(magnitude + odd) + _U32(0xC8000FFF)) >> _U32(13))
        subnormal = _U32(small[i] - _U32(0x3F000000))
        rounded = subnormal if magnitude < _U32(0x38800000) else normal
        rounded = _U32(0x7C00) if magnitude >= _U32(0x47800000) else rounded
        rounded = _U32(0x7E00) if magnitude > _U32(0x7F800000) else rounded
        result[i] = np.uint16(rounded | _U32(_U32(bits[i] >> _U32(16)) & _U32(0x8000)))


@jit
def _round_to_bfloat16(values: Any, n: int, result: Any) -> None:
    """Round to the nearest bfloat16, ties to even, as bits. values: float32 (>= n,); result: uint16 (>= n,)."""
    bits = values.view(np.uint32)
    for i in range(n):
        odd = _U32(_U32(bits[i] >> _U32(16)) & _U32(1))
        rounded = _U32(_U32(_U32(bits[i] + odd) + _U32(0x7FFF)) >> _U32(16))
        is_nan = _U32(bits[i] & _U32(0x7FFFFFFF)) > _U32(0x7F800000)
        result[i] = np.uint16(_U32(0x7FC0) if is_nan else rounded)


@jit
def _round(values: Any, kind: int, work: Any, n: int, result: Any) -> None:
    """Round float32 values to `kind`. result: bytes."""
    if kind == FLOAT16:
        _round_to_float16(values, work, n, result.view(np.uint16))
    elif kind == BFLOAT16:
        _round_to_bfloat16(values, n, result.view(np.uint16))
    else:
        _copy(values, n, result.view(np.float32))


@jit
def _normalise(values: Any, mean: Any, scale: Any, n: int, result: Any) -> None:
    for i in range(n):
        result[i] = (np.float32(values[i]) - mean[i]) * scale[i]


@jit
def _weigh(own: Any, other: Any, lam: Any, n: int, result: Any) -> None:
    rest = np.float32(1) - lam
    for i in range(n):
        result[i] = lam * own[i] + rest * other[i]


@jit
def _write(target: Any, source: Any, n: int, streams: bool) -> None:
    """Copy n bytes between addresses. `source` is aligned to 32 bytes; with `streams`, `target` and n are too."""
    if streams:
        for i in range(0, n, _STORE):
            _copy_streaming(target + i, source + i)
    else:
        _memcpy(target, source, n)


@jit
def _copy(values: Any, n: int, result: Any) -> None:
    for i in range(n):
        result[i] = values[i]


@jit
def _paste(own: Any, other: Any, box: Any, b: int, k: int, held: int, place: Any, result: Any) -> Any:
    """Write `own` to `result`, but `other` inside the box y0, x0, y1, x1 in box[b, k]; return whether it reaches into the tile.

    If not, nothing is written.

    Args:
        own, other, result: addresses.
        box, b, k: (B, K, 4) int32, and the pair and the member.
        held: the member whose box `result` shows already, or -1.
        place: the tile's first line and the one after its last; in bytes, its start in the plane and the lengths of the tile,
            of a line and of a pixel.
    """
    y0, x0, y1, x1 = box[b, k, 0], box[b, k, 1], box[b, k, 2], box[b, k, 3]
    first_line, stop_line, start, n, line, pixel = place
    top, bottom = max(y0, first_line), min(y1, stop_line)
    if top >= bottom or x0 >= x1:
        return False
    grows = (
        held >= 0
        and y0 <= box[b, held, 0]
        and x0 <= box[b, held, 1]
        and y1 >= box[b, held, 2]
        and x1 >= box[b, held, 3]
    )
    if not grows:
        for i in range(0, n, _STORE):  # up to 31 bytes more, for which there is room
            _copy_cached(result + i, own + i)
    left, right = x0 * pixel - start, x1 * pixel - start
    for y in range(top, bottom):
        first, stop = max(y * line + left, 0), min(y * line + right, n)
        if first < stop:
            _memcpy(result + first, other + first, stop - first)
    return True


@jit
def _paste_patch(own: Any, patch: Any, box: Any, b: int, k: int, place: Any, result: Any) -> Any:
    """Write pixels of `own` to `result`, but a patch in the box y0, x0, y1, x1 in box[b, k]; return whether it reaches the tile.

    If not, nothing is written.

    own, patch, result: addresses; the patch's is that of its part of this plane. box, place: as for `_paste`.
    """
    first_line, stop_line, start, n, line, pixel = place
    y0, x0, y1, x1 = box[b, k, 0], box[b, k, 1], box[b, k, 2], box[b, k, 3]
    top, bottom = max(y0, first_line), min(y1, stop_line)
    if top >= bottom or x0 >= x1:
        return False
    _memcpy(result, own, n)
    width = (x1 - x0) * pixel
    for y in range(top, bottom):
        left = y * line + x0 * pixel - start
        first, stop = max(left, 0), min(left + width, n)
        if first < stop:
            _memcpy(result + first, patch + (y - y0) * width + first - left, stop - first)
    return True


@jit
def _shine(
    own: Any, other: Any, factors: Any, b: int, k: int, height: int, start: int, n: int, line: int, result: Any
) -> None:
    """Write w * own + (1 - w) * other to `result`, w = 1 - g_y * g_x. A tile starts at element `start` of its plane.

    factors[b, k]: (height + line,), g_y of each line, then g_x of each element of a line.
    """
    y, x, done = start // line, start % line, 0
    while done < n:
        count = min(line - x, n - done)
        vertical = factors[b, k, y]
        to, at = np.uint64(done), np.uint64(height + x)  # unsigned: never negative, so LLVM can use vectors
        for i in range(np.uint64(count)):
            w = np.float32(1) - vertical * factors[b, k, at + i]
            result[to + i] = w * own[to + i] + (np.float32(1) - w) * other[to + i]
        y, x, done = y + 1, 0, done + count


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing_context: Any, address: Any) -> Any:
    """Return an address as a pointer, for `numba.carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return numba.types.voidptr(numba.types.uintp), generate


@jit
def _split_channels(image: Any, flip: bool, lines: int, width: int, planes: Any) -> None:
    """Write RGB pixels to one plane per channel, mirrored if `flip`. image: (lines * width * 3,). planes: flat, of that size."""
    # All three channels in one loop, flat arrays and unsigned indices (never negative): LLVM uses shuffles, 4 to 20 times as fast
    row: Any = np.uint64(width)
    plane: Any = np.uint64(lines * width)
    if flip:
        for y in range(np.uint64(lines)):
            first = y * row
            last = np.uint64(3) * (first + row - np.uint64(1))
            for x in range(row):
                at, to = last - np.uint64(3) * x, first + x
                planes[to] = image[at]
                planes[plane + to] = image[at + np.uint64(1)]
                planes[plane + plane + to] = image[at + np.uint64(2)]
    else:
        for to in range(plane):
            at = np.uint64(3) * to
            planes[to] = image[at]
            planes[plane + to] = image[at + np.uint64(1)]
            planes[plane + plane + to] = image[at + np.uint64(2)]


@jit
def _join_channels(planes: Any, image: Any) -> None:
    """Write one plane per channel as RGB pixels. planes, image: (lines * width * 3,)."""
    count: Any = np.uint64(planes.size // 3)
    for i in range(count):
        to = np.uint64(3) * i
        image[to] = planes[i]
        image[to + np.uint64(1)] = planes[count + i]
        image[to + np.uint64(2)] = planes[count + count + i]


@jit
def _copy_pixels(image: Any, flip: bool, lines: int, width: int, out: Any) -> None:
    """Copy RGB pixels, mirrored if `flip`. image, out: (lines * width * 3,)."""
    row = np.uint64(width)
    if flip:
        for y in range(np.uint64(lines)):
            first = np.uint64(3) * y * row
            last = first + np.uint64(3) * (row - np.uint64(1))
            for x in range(row):
                at, to = last - np.uint64(3) * x, first + np.uint64(3) * x
                out[to] = image[at]
                out[to + np.uint64(1)] = image[at + np.uint64(1)]
                out[to + np.uint64(2)] = image[at + np.uint64(2)]
    else:
        for i in range(np.uint64(3) * np.uint64(lines) * row):
            out[i] = image[i]


@jit
def _copy_rows(addresses: Any, flip: Any, channels_last: bool, width: int, out: Any, first: int, stop: int) -> None:
    """Copy the images at `addresses`, each (H, width, 3) uint8, mirrored where `flip` is set, for first <= b < stop.

    out: (B, H * width * 3) uint8.
    """
    lines = out.shape[1] // (3 * width)
    for b in range(first, stop):
        image = numba.carray(_pointer(addresses[b]), (out.shape[1],), np.uint8)
        if channels_last:
            _copy_pixels(image, flip[b], lines, width, out[b])
        else:
            _split_channels(image, flip[b], lines, width, out[b])


@jit
def _mix_pairs(
    images: Any,
    mean: Any,
    scale: Any,
    partner: Any,
    lam: Any,
    field: Any,
    box: Any,
    factors: Any,
    patch: Any,
    patch_start: Any,
    height: int,
    width: int,
    inner: int,
    kind: int,
    out: Any,
    first: int,
    stop: int,
) -> None:
    """Compute out[b, k] = w * x[b] + (1 - w) * x[partner[b, k]], x = (images - mean) * scale, for first <= b < stop.

    Args:
        images: (B, P, N) uint8 or float32: P planes of N elements per image.
        mean, scale: (P, TILE) float32; those of element i of a plane are at i % TILE.
        partner, lam: (B, K) int64 and float32.
        field, box: (B,) uint8 numbers of `Field`, (B, K, 4) int32.
        factors: (B, K, height + width * inner) float32; of any shape without smooth fields.
        patch, patch_start: `Patches`, of the images' dtype.
        height, width, inner: lines, pixels per line, elements per pixel.
        kind: FLOAT32, FLOAT16 or BFLOAT16. Arithmetic is float32; only results are rounded.
        out: (B, K, P, N * itemsize) uint8, the bytes of the results.
    """
    planes, elements = images.shape[1:]
    k_members = lam.shape[1]
    size = 4 if kind == FLOAT32 else 2
    own = np.empty(TILE, dtype=np.float32)
    other = np.empty(TILE, dtype=np.float32)
    work = np.empty(TILE, dtype=np.float32)
    pasted = _buffer(4 * TILE, out.ctypes.data + _PAGE // 2).view(images.dtype)
    mixed_bytes, rounded_bytes = _buffer(4 * TILE, out.ctypes.data), _buffer(2 * TILE, out.ctypes.data)
    mixed, rounded = mixed_bytes.view(np.float32), rounded_bytes.view(np.uint16)
    result = mixed_bytes if kind == FLOAT32 else rounded_bytes
    own_result, other_result = _buffer(4 * TILE, out.ctypes.data), _buffer(4 * TILE, out.ctypes.data + _PAGE // 2)
    own_values, other_values = own_result.view(np.float32), other_result.view(np.float32)
    own_at, other_at = own_result.ctypes.data, other_result.ctypes.data
    result_at, out_at = result.ctypes.data, out.ctypes.data
    pasted_at, patch_at, depth = pasted.ctypes.data, patch.ctypes.data, images.itemsize
    streams = out.ctypes.data % _STORE == 0 and elements * size % _STORE == 0
    line = width * inner
    for b in range(first, stop):
        boxed = field[b] == BOX
        direct = boxed and kind == FLOAT32  # float32 needs no rounding: it is normalised where it is copied from
        own_to, other_to = (own_values, other_values) if direct else (own, other)
        for plane in range(planes):
            plane_mean, plane_scale = mean[plane], scale[plane]
            for start in range(0, elements, TILE):
                n = min(TILE, elements - start)
                _normalise(images[b, plane, start:], plane_mean, plane_scale, n, own_to)
                if (boxed or field[b] == RESIZED) and not direct:  # pixels of x are copied: rounded once
                    _round(own, kind, work, n, own_result)
                # out of the inner loop: a division takes as long as a line
                lines = (start // line, (start + n - 1) // line + 1)
                place = (*lines, start * size, n * size, line * size, inner * size)
                pixels_at = images.ctypes.data + ((b * planes + plane) * elements + start) * depth
                place_of_pixels = (*lines, start * depth, n * depth, line * depth, inner * depth)
                held = -1
                # no slices and no functions with this body: counting references drains the streaming stores, 1.5 times as long
                for k in range(k_members):
                    if field[b] != RESIZED and (k == 0 or partner[b, k] != partner[b, k - 1]):
                        _normalise(images[partner[b, k], plane, start:], plane_mean, plane_scale, n, other_to)
                        if boxed and not direct:
                            _round(other, kind, work, n, other_result)
                    row = (b * k_members + k) * planes + plane
                    target = out_at + (row * elements + start) * size
                    if boxed:
                        if _paste(own_at, other_at, box, b, k, held, place, result_at):
                            held = k
                            _write(target, result_at, n * size, streams)
                        else:
                            _write(target, own_at, n * size, streams)
                        continue
                    if field[b] == RESIZED:
                        area = (box[b, k, 2] - box[b, k, 0]) * (box[b, k, 3] - box[b, k, 1])
                        at = patch_at + (patch_start[b, k] + plane * area * inner) * depth
                        if not _paste_patch(pixels_at, at, box, b, k, place_of_pixels, pasted_at):
                            _write(target, own_at, n * size, streams)
                            continue
                        _normalise(pasted, plane_mean, plane_scale, n, mixed)
                    elif field[b] == CONSTANT:
                        _weigh(own, other, lam[b, k], n, mixed)
                    else:
                        _shine(own, other, factors, b, k, height, start, n, line, mixed)
                    if kind == FLOAT16:
                        _round_to_float16(mixed, work, n, rounded)
                    elif kind == BFLOAT16:
                        _round_to_bfloat16(mixed, n, rounded)
                    _write(target, result_at, n * size, streams)
    if streams:
        _fence()


@jit
def _normalise_rows(images: Any, mean: Any, scale: Any, kind: int, out: Any, first: int, stop: int) -> None:
    """Compute out[b] = (images[b] - mean) * scale for first <= b < stop. out: (B, P, N * itemsize); see `_mix_pairs`."""
    planes, elements = images.shape[1:]
    size = 4 if kind == FLOAT32 else 2
    work = np.empty(TILE, dtype=np.float32)
    values_bytes, rounded_bytes = _buffer(4 * TILE, out.ctypes.data), _buffer(2 * TILE, out.ctypes.data)
    values, rounded = values_bytes.view(np.float32), rounded_bytes.view(np.uint16)
    result = values_bytes if kind == FLOAT32 else rounded_bytes
    result_at, out_at = result.ctypes.data, out.ctypes.data
    streams = out.ctypes.data % _STORE == 0 and elements * size % _STORE == 0
    for b in range(first, stop):
        for plane in range(planes):
            for start in range(0, elements, TILE):
                n = min(TILE, elements - start)
                _normalise(images[b, plane, start:], mean[plane], scale[plane], n, values)
                if kind == FLOAT16:
                    _round_to_float16(values, work, n, rounded)
                elif kind == BFLOAT16:
                    _round_to_bfloat16(values, n, rounded)
                target = out_at + ((b * planes + plane) * elements + start) * size
                _write(target, result_at, n * size, streams)
    if streams:
        _fence()


def copy_rows(
    images: Sequence[NDArray[np.uint8]],
    flip: NDArray[np.bool_],
    out: Tensor,
    channels_last: bool,
    threads: ThreadPoolExecutor | None = None,
) -> None:
    """Copy contiguous (H, W, 3) uint8 images into a batch, mirrored where `flip` is set.

    out: uint8 (B, H, W, 3) if channels_last, else (B, 3, H, W).
    """
    shape = tuple(out.shape[1:]) if channels_last else (*out.shape[2:], 3)
    assert all(image.shape == shape and image.flags.c_contiguous for image in images), "the kernel reads their memory"
    addresses = np.array([image.__array_interface__["data"][0] for image in images], dtype=np.uint64)
    target, width = out.numpy().reshape(len(images), -1), shape[1]

    def work(first: int, stop: int) -> None:
        _copy_rows(addresses, flip, channels_last, width, target, first, stop)

    _in_parts(len(images), work, threads)


def blend(
    images: Tensor,
    mix: MixTensors | None,
    out: Tensor,
    layout: Layout,
    normalize: Normalize | None = None,
    threads: ThreadPoolExecutor | None = None,
) -> None:
    """Write w * x + (1 - w) * x' into `out`, for the weight fields w of `mix`; if that is None, write x.

    images: (B, ...) float32, or uint8 pixels for `normalize`. out: contiguous (B, K, ...), or (B, ...) if `mix` is None, of a
    dtype in KINDS. The calling thread does the work, with the threads of the pool if one is given.
    """
    if not out.numel():
        return
    rows = len(images)
    if normalize is None:
        normalize = Normalize(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32), channels_last=False)
    mean, scale = (np.repeat(v, layout.planes // len(v), axis=0) for v in normalize.per_plane(TILE))
    kind = KINDS[out.dtype]
    source = images.contiguous().view(rows, layout.planes, -1).numpy()
    if mix is None:
        target = out.view(rows, layout.planes, -1).view(torch.uint8).numpy()

        def work(first: int, stop: int) -> None:
            _normalise_rows(source, mean, scale, kind, target, first, stop)
    else:
        target = out.view(rows, mix.lam.shape[1], layout.planes, -1).view(torch.uint8).numpy()
        patches = resized_partners(
            images, mix, layout, lambda count, resize: _in_parts(count, resize, threads), _interleaved
        )
        values, starts = (
            (source.reshape(-1)[:0], _NOWHERE) if patches is None else (patches.values.numpy(), patches.start)
        )
        decisions, shape = (*_decisions(mix, layout), values, starts), (layout.height, layout.width, layout.inner)

        def work(first: int, stop: int) -> None:
            _mix_pairs(*(source, mean, scale, *decisions, *shape, kind, target, first, stop))

    _in_parts(rows, work, threads)


def _interleaved(image: Tensor) -> Tensor:
    planes, height, width, inner = image.shape
    if (planes, inner, image.dtype) != (3, 1, torch.uint8):
        return interleaved(image)
    pixels = np.empty((height, width, planes, inner), dtype=np.uint8)
    _join_channels(image.contiguous().numpy().reshape(-1), pixels.reshape(-1))
    return torch.from_numpy(pixels)


def _decisions(mix: MixTensors, layout: Layout) -> list[NDArray[np.generic]]:
    """Return partner, lam, field, box and factors for `_mix_pairs`; those that `mix` lacks are small and never read."""
    pairs, k = mix.lam.shape
    cpu = torch.device("cpu")  # whatever the default device is
    field = torch.zeros(pairs, dtype=torch.uint8, device=cpu) if mix.field is None else mix.field
    box = torch.zeros(1, 1, 4, dtype=torch.int32, device=cpu).expand(pairs, k, 4) if mix.box is None else mix.box
    none = torch.zeros(1, 1, 1, dtype=torch.float32, device=cpu)
    factors = none.expand(pairs, k, 1) if mix.factors is None else mix.factors
    if mix.factors is not None and layout.inner > 1:
        height, width = mix.factors[..., : layout.height], mix.factors[..., layout.height :]
        factors = torch.cat([height, width.repeat_interleave(layout.inner, dim=2)], dim=2)
    return [part.contiguous().numpy() for part in (mix.member_partner, mix.lam, field, box, factors)]


def _in_parts(rows: int, work: Callable[[int, int], None], threads: ThreadPoolExecutor | None) -> None:
    """Call `work(first, stop)` for all rows, in the calling thread and, if given, the threads of a pool."""
    step = max(1, rows if threads is None else -(-rows // MIXERS))
    parts = [
        threads.submit(work, first, min(first + step, rows)) for first in range(step, rows, step) if threads is not None
    ]
    work(0, min(step, rows))
    for part in parts:
        part.result()
