"""A step's decisions as tensors on the loader's device, in one upload a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.mixing import MixPlan

_ALIGNMENT = 16  # bytes: of any element's type, wherever it lies in an upload


@dataclass(frozen=True, eq=False)
class MixTensors:
    """What a blend and the targets need of a `MixPlan`."""

    partner: Tensor
    """(B,) int64."""
    lam: Tensor
    """(B, K) float32."""
    boxed: Tensor | None = None
    """(B,) bool, whether a pair's field is a box; None where no pair's is."""
    box: Tensor | None = None
    """(B, K, 4) int32; None where no pair has one."""

    def fields(self) -> tuple[Tensor, Tensor]:
        """`boxed` and `box`, made up where no pair has one: no pair is boxed then, and nothing of its box is read."""
        if self.boxed is None or self.box is None:
            pairs, k = self.lam.shape
            return torch.zeros(pairs, dtype=torch.bool), torch.zeros(1, 1, 4, dtype=torch.int32).expand(pairs, k, 4)
        return self.boxed, self.box

    @classmethod
    def of(cls, plan: MixPlan, device: torch.device) -> MixTensors:
        """The plan on `device`."""
        return cls(*upload(mix_arrays(plan), device))


@dataclass(frozen=True, eq=False)
class StepTensors:
    """What a batch's images and targets need of its step's plan."""

    labels: Tensor
    """(B,) int64 class ids."""
    mix: MixTensors | None
    """None where nothing is mixed."""

    @classmethod
    def of(cls, labels: NDArray[np.int64], plan: MixPlan | None, device: torch.device) -> StepTensors:
        """Labels, and the plan where there is mixing to be done, on `device`."""
        own, *mix = upload([labels, *([] if plan is None else mix_arrays(plan))], device)
        return cls(own, MixTensors(*mix) if mix else None)


class KeptUntilRead:
    """Keeps what DALI has made on a GPU until it has been read: DALI reuses memory in the order of its own stream, which waits
    for no other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: deque[tuple[torch.cuda.Event, object]] = deque()

    def keep(self, memory: object) -> None:
        """Keep `memory` until all that the current stream has been given so far is done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._kept.append((event, memory))
        while self._kept and self._kept[0][0].query():  # type: ignore[no-untyped-call]
            self._kept.popleft()

    def close(self) -> None:
        """Wait until all has been read, and let go of it."""
        while self._kept:
            self._kept.popleft()[0].synchronize()


def mix_arrays(plan: MixPlan) -> list[NDArray[np.generic]]:
    """What `MixTensors` is made of, on the host."""
    arrays: list[NDArray[np.generic]] = [plan.partner, plan.lam]
    return [*arrays, plan.boxed, plan.box] if plan.boxed.any() else arrays


def upload(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """Arrays as tensors on `device`; on CUDA in one copy, for which the host does not wait.

    A copy from memory that is not pinned would wait for all that the device still has to do. torch keeps pinned memory, and uses
    it again once the copy is over.
    """
    if device.type != "cuda":
        return [torch.as_tensor(np.require(array, requirements=["C", "W"])).to(device) for array in arrays]
    starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)])
    packed = torch.empty(int(starts[-1]), dtype=torch.uint8, pin_memory=True)
    for array, start in zip(arrays, starts, strict=False):
        packed[start : start + array.nbytes] = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    on_device = packed.to(device, non_blocking=True)
    return [
        on_device[start : start + array.nbytes].view(torch.as_tensor(array[:0]).dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]
