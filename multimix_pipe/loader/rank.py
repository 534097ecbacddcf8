"""Finds the rank of this process, the number of processes on its machine, and its device."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from multimix_pipe.errors import ConfigError
from multimix_pipe.shards.launcher import World, local_rank, local_world_size, world_from_environment

logger = logging.getLogger("multimix_pipe")

_HOW_TO_TELL = (
    "Call torch.distributed.init_process_group before the first batch, start the script with torchrun, or pass rank= and "
    "world_size="
)


def find_world(rank: int | None = None, world_size: int | None = None) -> World:
    """Return the arguments if given; else what torch.distributed says, else the environment, else process 0 of 1."""
    if rank is not None and world_size is not None:
        return World(rank, world_size, "rank= and world_size=")
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), "torch.distributed")
    return world_from_environment()


class Ranks:
    """The rank of a loader's process, which may become known only after the loader was opened.

    It is looked up again at the start of each epoch, and must then be the one that the loader's answers were based on.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        """Look the rank up, and warn if the environment tells only half of it. `rank` and `world_size` are the arguments."""
        self._arguments = rank, world_size
        self._answered: World | None = None
        world = self.now()
        if world.missing:
            logger.warning(
                "the environment has %s, so this process cannot tell its rank. %s", world.missing, _HOW_TO_TELL
            )

    def now(self) -> World:
        """Return what is known now."""
        return find_world(*self._arguments)

    def for_answer(self) -> World:
        """Return what is known now, for a length or a state that the caller gets to see."""
        world = self.now()
        if self._answered is None:
            self._answered = world
        return world

    def for_epoch(self) -> World:
        """Return what is known now, for an epoch that starts.

        Raises ConfigError if the rank is unknown, or a length or a state was given under another one.
        """
        world, answered = self.now(), self._answered
        if world.missing:
            raise ConfigError(
                f"the rank of each process must be known; the environment has {world.missing}. {_HOW_TO_TELL}"
            )
        if answered is not None and (answered.rank, answered.size) != (world.rank, world.size):
            raise ConfigError(
                f"the rank must not change after len(loader) or a state was given: that was for {answered}, this is {world}. "
                "Initialise torch.distributed before you ask for the length or the state, or pass rank= and world_size="
            )
        return world


def processes_here(world: World) -> int:
    """Return how many processes share this machine: as the launcher says, else at most one for each GPU, else 1."""
    found = local_world_size(world.size)
    if found is None and torch.cuda.is_available():
        found = min(world.size, torch.cuda.device_count())
    return max(1, found or 1)


def choose_device(device: str | torch.device) -> torch.device:
    """Resolve a device. "auto" is CUDA, else MPS, else the CPU. Raises ConfigError if the device does not exist.

    "cuda" is the device that `torch.cuda.set_device` selected, else the GPU of the local rank, or the only one that is visible.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps"; found {name!r}') from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device={name!r} needs a CUDA GPU and a torch built for CUDA; torch finds no GPU")
        index, visible = _default_gpu() if chosen.index is None else chosen.index, torch.cuda.device_count()
        if index >= visible:
            raise ConfigError(f"device cuda:{index} must be one of the {visible} GPUs that torch sees")
        return torch.device("cuda", index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device='mps' needs an Apple GPU; torch finds none")
    if chosen.type not in ("cpu", "mps"):
        raise ConfigError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps"; found {name!r}')
    return chosen


def _default_gpu() -> int:
    # until something initialises CUDA, nothing was selected; asking earlier would create a context on GPU 0
    selected = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    return selected or (local_rank() if torch.cuda.device_count() > 1 else 0)
