"""What a launcher tells a process in its environment: its rank, the number of processes, and how many share the machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from multimix_pipe.errors import ConfigError

_PAIRS = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
)
_SLURM_PAIR = ("SLURM_PROCID", "SLURM_NTASKS")

_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm numbers steps from 0; the batch script, an interactive shell and others have the largest 32-bit numbers."""


@dataclass(frozen=True)
class World:
    """The place of this process among those that share an epoch."""

    rank: int
    size: int
    source: str
    """Where the numbers come from."""
    missing: str = ""
    """What the environment says of other processes without saying which one this is; empty if nothing."""

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size} ({self.source})"


def world_from_environment() -> World:
    """Return the rank and the number of processes that the first launcher found has set; without one, process 0 of 1.

    Slurm's variables count in a step that `srun` started. In the script of a batch job they describe the allocation.
    """
    missing = ""
    for rank_name, size_name in (*_PAIRS, *([_SLURM_PAIR] if in_slurm_step() else [])):
        rank, size = _number(rank_name), _number(size_name)
        if rank is not None and size is not None:
            if rank >= size:
                raise ConfigError(
                    f"the environment variable {rank_name} must be below {size_name}={size}; found {rank}"
                )
            return World(rank, size, f"{rank_name} and {size_name}")
        if size is not None and size > 1:
            missing = missing or f"{size_name}={size} without {rank_name}"
        elif rank:
            missing = missing or f"{rank_name}={rank} without {size_name}"
    return World(0, 1, missing or "no launcher found", missing)


def in_slurm_step() -> bool:
    """Return whether `srun` started this process."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def local_rank() -> int:
    """Return this process's number among those on its machine, 0 if no launcher has set it."""
    names = (*_LOCAL_RANKS, *(["SLURM_LOCALID"] if in_slurm_step() else []))
    return next((number for name in names if (number := _number(name)) is not None), 0)


def local_world_size(world_size: int | None = None) -> int | None:
    """Return how many processes share this machine, or None if the environment does not tell.

    `world_size` is the number of all processes, if known: they are on one machine if their master's address is its own.
    """
    for name in _LOCAL_SIZES:
        if number := _number(name):
            return number
    if in_slurm_step() and (tasks := _slurm_tasks_per_node()):
        node = _number("SLURM_NODEID") or 0
        return tasks[node] if node < len(tasks) else max(tasks)
    if os.environ.get("MASTER_ADDR") in _LOOPBACK:
        return _number("WORLD_SIZE") if world_size is None else world_size
    return None


def _slurm_tasks_per_node() -> list[int]:
    """Expand SLURM_STEP_TASKS_PER_NODE, for example "8(x2),4"; empty if it is not set."""
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise ConfigError(f"the environment variable {name} must be a whole number; found {value!r}")
