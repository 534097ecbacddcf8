"""A step's labels and mixing plan as tensors on the loader's device, uploaded together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.mixing import MixPlan

_ALIGNMENT = 16  # bytes, enough for any dtype


@dataclass(frozen=True, eq=False)
class MixTensors:
    """The parts of a `MixPlan` that blending and targets need."""

    partner: Tensor
    """(B,) int64."""
    lam: Tensor
    """(B, K) float32."""
    boxed: Tensor | None = None
    """(B,) bool: whether a pair's weight field is a box; None if no pair's is."""
    box: Tensor | None = None
    """(B, K, 4) int32 y0, x0, y1, x1; None if no pair has one."""

    def fields(self) -> tuple[Tensor, Tensor]:
        """Return `boxed` and `box`. If both are None: `boxed` all False, and a placeholder that is never read."""
        if self.boxed is None or self.box is None:
            pairs, k = self.lam.shape
            cpu = torch.device("cpu")  # whatever the default device is
            box = torch.zeros(1, 1, 4, dtype=torch.int32, device=cpu).expand(pairs, k, 4)
            return torch.zeros(pairs, dtype=torch.bool, device=cpu), box
        return self.boxed, self.box

    @classmethod
    def of(cls, plan: MixPlan, device: torch.device) -> MixTensors:
        """Return the tensors of `plan` on `device`."""
        return cls(*upload(mix_arrays(plan), device))


@dataclass(frozen=True, eq=False)
class StepTensors:
    """A step's labels and mixing plan, from which its images and targets are made."""

    labels: Tensor
    """(B,) int64 class ids."""
    mix: MixTensors | None
    """None without mixing."""

    @classmethod
    def of(cls, labels: NDArray[np.int64], plan: MixPlan | None, device: torch.device) -> StepTensors:
        """Return `labels`, and `plan` unless it is None, on `device`."""
        on_device, *mix = upload([labels, *([] if plan is None else mix_arrays(plan))], device)
        return cls(on_device, MixTensors(*mix) if mix else None)


class KeptUntilRead:
    """Keeps DALI's GPU outputs alive until they have been read.

    DALI reuses their memory in the order of its own stream, which waits for no other stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: deque[tuple[torch.cuda.Event, object]] = deque()

    def keep(self, memory: object) -> None:
        """Keep `memory` until all work queued so far on the current stream is done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._kept.append((event, memory))
        while self._kept and self._kept[0][0].query():  # type: ignore[no-untyped-call]
            self._kept.popleft()

    def close(self) -> None:
        """Wait until everything kept has been read, and release it."""
        while self._kept:
            self._kept.popleft()[0].synchronize()


def mix_arrays(plan: MixPlan) -> list[NDArray[np.generic]]:
    """Return the arrays that `MixTensors` is made of."""
    arrays: list[NDArray[np.generic]] = [plan.partner, plan.lam]
    return [*arrays, plan.boxed, plan.box] if plan.boxed.any() else arrays


def upload(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Return `arrays` as tensors on `device`. For CUDA this is one copy, which the host does not wait for.

    A copy from pageable memory would wait for all work queued on the device. torch reuses pinned memory once its copy is done.
    """
    if device.type != "cuda":
        return [torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device) for array in arrays]
    starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)])
    packed = torch.empty(int(starts[-1]), dtype=torch.uint8, device="cpu", pin_memory=True)
    for array, start in zip(arrays, starts, strict=False):
        packed[start : start + array.nbytes] = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    on_device = packed.to(device, non_blocking=True)
    return [
        on_device[start : start + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]
