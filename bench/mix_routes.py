"""The ways to mix a batch that bench/mix_stage.py compares. A route takes a `Problem` and gives the `Work` to be timed.

A route that cannot run on a machine raises `NotAvailableError` with the reason, which the report repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from multimix_pipe.runtime.kernels.blend import MIXERS, blend
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.config import TrainTransform, usable_cores
from multimix_pipe.mixing import mixup
from multimix_pipe.runtime.kernels.normalize import Normalize

NORMALIZE = Normalize.of(TrainTransform(), channels_last=False)
MEAN, SCALE = NORMALIZE.mean, NORMALIZE.scale


class NotAvailableError(Exception):
    """This route cannot run here; the message says why."""


@dataclass(frozen=True, eq=False)
class Problem:
    """B pairs to be mixed K ways, several batches of them: no cache holds them all."""

    pixels: Sequence[Tensor]
    """Batches (B, C, H, W) uint8."""
    images: Sequence[Tensor]
    """The same batches, (pixel - mean) * scale in float32."""
    partner: NDArray[np.int64]
    lam: NDArray[np.float32]
    dtype: torch.dtype
    """Of the result."""

    @classmethod
    def random(
        cls, shape: tuple[int, ...], lam: NDArray[np.float32], dtype: torch.dtype, device: torch.device
    ) -> Problem:
        """Batches of `shape` (B, 3, H, W); partners are the rows before, as far as memory goes as good as any."""
        batches = 4 if device.type == "cuda" else 2
        generator = torch.Generator(device).manual_seed(0)
        pixels = [
            torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator) for _ in range(batches)
        ]
        mean, scale = normalisation(device)
        images = [torch.sub(batch, mean[:, None, None]).mul_(scale[:, None, None]) for batch in pixels]
        rng = np.random.default_rng(0)
        cycle = rng.permutation(shape[0])
        partner = np.empty(shape[0], dtype=np.int64)
        partner[cycle] = np.roll(cycle, 1)
        return cls(pixels, images, partner, lam, dtype)

    @property
    def device(self) -> torch.device:
        return self.images[0].device

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, K, C, H, W), the result's."""
        return (*self.lam.shape, *self.images[0].shape[1:])

    @property
    def bytes_written(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def result(self) -> Tensor:
        """Memory for a result, kept by the route; poisoned, so that what is not written is seen."""
        return torch.full(self.shape, torch.nan, dtype=self.dtype, device=self.device)

    def decisions(self) -> tuple[Tensor, Tensor]:
        """Partner (B,) int64 and lam (B, K) on the device."""
        return torch.from_numpy(self.partner).to(self.device), torch.from_numpy(self.lam).to(self.device)

    def oracle(self, batch: int, pair: int) -> Tensor:
        """The K rows of one pair, computed by the reference, in the result's type."""
        rows = [pair, int(self.partner[pair])]
        images = self.images[batch][rows].cpu().numpy()
        mixed = mixup.mix_images(images, np.array([1, 0]), self.lam[rows])
        return torch.from_numpy(mixed[: self.lam.shape[1]]).to(self.dtype)


@dataclass(frozen=True, eq=False)
class Work:
    """What is timed."""

    mix: Callable[[int], Tensor]
    """Mixes batch i (of `Problem.images`, modulo their number) to (B, K, C, H, W), which holds until the next call."""
    bytes_read: int
    """The least that has to be read: each input once."""


Route = Callable[[Problem], Work]


def normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and scale of the channels, (3,) float32 in units of 0..255."""
    return torch.from_numpy(MEAN).to(device), torch.from_numpy(SCALE).to(device)


def _size(batch: Tensor) -> int:
    return batch.numel() * batch.dtype.itemsize


def copy_of_the_result(problem: Problem) -> Work:
    """The device's bandwidth: read as much as is written."""
    source, out = torch.randn(problem.shape, device=problem.device).to(problem.dtype), problem.result()
    return Work(lambda _: out.copy_(source), _size(out))


def broadcast_copy(problem: Problem) -> Work:
    """Write each image K times: what a mixing that computes nothing costs."""
    out = problem.result()
    return Work(
        lambda i: out.copy_(problem.images[i % len(problem.images)][:, None].expand(problem.shape)),
        _size(problem.images[0]),
    )


def mixers() -> ThreadPoolExecutor:
    """The threads that a loader mixes with on a CPU."""
    return ThreadPoolExecutor(min(MIXERS, usable_cores()))


def blend_kept(problem: Problem) -> Work:
    """`multimix_pipe.runtime.kernels.blend` into memory that is kept, as the loaders call it."""
    out, decisions, threads = problem.result(), problem.decisions(), mixers()

    def mix(i: int) -> Tensor:
        return blend(problem.images[i % len(problem.images)], *decisions, out, threads=threads)

    return Work(mix, _size(problem.images[0]))


def blend_from_pixels(problem: Problem) -> Work:
    """`blend` from uint8: in one pass on a CPU, after torch's operations on a GPU."""
    out, decisions, threads = problem.result(), problem.decisions(), mixers()
    mean, scale = (values[:, None, None] for values in normalisation(problem.device))

    def mix(i: int) -> Tensor:
        pixels = problem.pixels[i % len(problem.pixels)]
        if pixels.device.type == "cpu":
            return blend(pixels, *decisions, out, normalize=NORMALIZE, threads=threads)
        return blend(torch.sub(pixels, mean).mul_(scale), *decisions, out)

    return Work(mix, _size(problem.pixels[0]))


def triton_routes(blocks: Sequence[tuple[int, int, bool]]) -> dict[str, Route]:
    """Routes of the Triton kernel, from float32 and from uint8, for each (block, warps, pairs_first)."""
    routes: dict[str, Route] = {}
    for block, warps, pairs_first in blocks:
        how = f"{block}/{warps}/{'pairs' if pairs_first else 'blocks'} first"
        routes[f"triton {how}"] = _triton(block, warps, pairs_first, from_pixels=False)
        routes[f"triton {how}, from uint8"] = _triton(block, warps, pairs_first, from_pixels=True)
    return routes


def _triton(block: int, warps: int, pairs_first: bool, *, from_pixels: bool) -> Route:
    def route(problem: Problem) -> Work:
        if problem.device.type != "cuda":
            raise NotAvailableError("Triton's kernels need a GPU")
        try:
            from mix_triton import Setting, mix_images, mix_pixels
        except ImportError as error:
            raise NotAvailableError(f"Triton does not import: {error}") from error
        setting, out, decisions = Setting(block, warps, pairs_first), problem.result(), problem.decisions()
        mean, scale = normalisation(problem.device)

        def mix(i: int) -> Tensor:
            if from_pixels:
                return mix_pixels(problem.pixels[i % len(problem.pixels)], mean, scale, *decisions, out, setting)
            return mix_images(problem.images[i % len(problem.images)], *decisions, out, setting)

        return Work(mix, _size((problem.pixels if from_pixels else problem.images)[0]))

    return route
