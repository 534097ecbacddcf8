"""Finds the rank of this process, its share of the cores and its device."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from multimix_pipe.errors import ConfigError


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the arguments if given; else those of torch.distributed, else of torchrun's environment, else (0, 1)."""
    if (rank is None) != (world_size is None):
        raise ConfigError(f"rank and world_size must be given together; found rank={rank}, world_size={world_size}")
    if rank is not None and world_size is not None:
        return rank, world_size
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _environment_int("RANK", 0), _environment_int("WORLD_SIZE", 1)
    return 0, 1


def choose_device(device: str | torch.device) -> torch.device:
    """Resolve a device. "auto" is cuda:LOCAL_RANK, else MPS, else the CPU. Raises ConfigError if the device does not exist."""
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
        index = _environment_int("LOCAL_RANK", 0) if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"device cuda:{index} must be one of the {torch.cuda.device_count()} GPUs that torch sees"
            )
        return torch.device("cuda", index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device='mps' needs an Apple GPU; torch finds none")
    if chosen.type not in ("cpu", "mps"):
        raise ConfigError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps"; found {name!r}')
    return chosen


def _environment_int(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} must be a whole number; found {value!r}")
    return int(value)
