"""A step's labels and mixing plan as tensors on the loader's device, uploaded together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimix_pipe.mixing import Field, MixPlan

_ALIGNMENT = 16  # bytes, enough for any dtype


@dataclass(frozen=True, eq=False)
class MixTensors:
    """The parts of a `MixPlan` that blending and targets need."""

    partner: Tensor
    """(B,) int64, or (B, K)."""
    lam: Tensor
    """(B, K) float32."""
    field: Tensor | None = None
    """(B,) uint8, the kind of each pair's weight field, a number of `Field`; None if all are constant."""
    box: Tensor | None = None
    """(B, K, 4) int32 y0, x0, y1, x1; None likewise."""
    factors: Tensor | None = None
    """(B, K, H + W) float32, see `MixPlan.factors`; None if no pair's field is smooth."""
    resized: MixPlan | None = None
    """The plan itself if it resizes partners: the host needs its boxes, and reading them back from a GPU would wait for it."""

    @property
    def member_partner(self) -> Tensor:
        """(B, K) int64, a view: see `MixPlan.member_partner`."""
        return per_member(self.partner, self.lam)

    @property
    def constant(self) -> Tensor:
        """See `MixPlan.constant`."""
        return self.lam if self.field is None else self.lam.masked_fill((self.field != Field.CONSTANT)[:, None], 1)

    def of_crops(self) -> MixTensors:
        """Return the tensors of `MixPlan.of_crops`, made on their device."""
        k = self.lam.shape[1]
        partner = self.member_partner * k + torch.arange(k, device=self.lam.device)
        field = None if self.field is None else self.field[:, None].expand_as(self.lam).reshape(-1)
        box, factors = (None if part is None else part.flatten(0, 1)[:, None] for part in (self.box, self.factors))
        resized = None if self.resized is None else self.resized.of_crops()
        return MixTensors(partner.view(-1), self.lam.view(-1, 1), field, box, factors, resized)

    @classmethod
    def of(cls, plan: MixPlan, device: torch.device) -> MixTensors:
        """Return the tensors of `plan` on `device`."""
        return cls.from_uploaded(plan, upload(mix_arrays(plan), device))

    @classmethod
    def from_uploaded(cls, plan: MixPlan, arrays: Sequence[Tensor]) -> MixTensors:
        """Return the tensors of `plan`; arrays: those of `mix_arrays`, on a device."""
        partner, lam, field, box, factors = (*arrays, None, None, None)[:5]
        assert partner is not None
        assert lam is not None
        return cls(partner, lam, field, box, factors, plan if (plan.field == Field.RESIZED).any() else None)


@dataclass(frozen=True, eq=False)
class StepTensors:
    """A step's labels and mixing plan, from which its images and targets are made."""

    labels: Tensor
    """(B,) int64 class ids, or (B, C) float32 of 0 and 1 with several labels."""
    mix: MixTensors | None
    """None without mixing."""

    @classmethod
    def of(
        cls, labels: NDArray[np.int64] | NDArray[np.float32], plan: MixPlan | None, device: torch.device
    ) -> StepTensors:
        """Return `labels`, and `plan` unless it is None, on `device`."""
        on_device, *mix = upload([labels, *([] if plan is None else mix_arrays(plan))], device)
        return cls(on_device, None if plan is None else MixTensors.from_uploaded(plan, mix))


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


def per_member(values: Tensor, lam: Tensor) -> Tensor:
    """Return values of pairs (B,) or of members (B, K) as a view (B, K), the shape of `lam`."""
    return values if values.ndim == 2 else values[:, None].expand_as(lam)


def mix_arrays(plan: MixPlan) -> list[NDArray[np.generic]]:
    """Return the arrays that `MixTensors` is made of."""
    arrays: list[NDArray[np.generic]] = [plan.partner, plan.lam]
    if plan.field.any():  # not all Field.CONSTANT, which is 0
        arrays += [plan.field, plan.box]
    return arrays if plan.factors is None else [*arrays, plan.factors]


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
