"""What the process is: its rank, its share of the cores, its device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from multimix_pipe.config import LoaderConfig
from multimix_pipe.cores import usable_cores
from multimix_pipe.errors import ConfigError


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given; else of torch.distributed, else of torchrun's environment, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ConfigError(f"rank and world_size must be given together; found rank={rank}, world_size={world_size}")
    if rank is not None and world_size is not None:
        return rank, world_size
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _environment_int("RANK", 0), _environment_int("WORLD_SIZE", 1)
    return 0, 1


def default_threads() -> int:
    """Usable cores, shared between the processes of this machine."""
    return max(1, usable_cores() // max(1, _environment_int("LOCAL_WORLD_SIZE", 1)))


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto": CUDA (cuda:LOCAL_RANK), else MPS, else the CPU. Raises ConfigError where the device is not there."""
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps"; found {name!r}') from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device={name!r} needs a CUDA GPU and a torch built for it; this torch sees none")
        number = _environment_int("LOCAL_RANK", 0) if chosen.index is None else chosen.index
        if number >= torch.cuda.device_count():
            raise ConfigError(
                f"device cuda:{number} must be one of the {torch.cuda.device_count()} GPUs that torch sees"
            )
        return torch.device("cuda", number)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device='mps' needs an Apple GPU; this torch sees none")
    if chosen.type not in ("cpu", "mps"):
        raise ConfigError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps"; found {name!r}')
    return chosen


def check_batch_fits(config: LoaderConfig, device: torch.device) -> None:
    """Raise ConfigError where one batch alone is larger than the device's memory."""
    needed = _batch_bytes(config)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            f"a batch must fit the memory of {device}, {memory / 1e9:.3g} GB; {_batch_in_words(config)} "
            f"take {needed / 1e9:.3g} GB. Lower batch_size or k"
        )


@contextmanager
def memory_explained(config: LoaderConfig, device: torch.device) -> Iterator[None]:
    """Turn running out of memory, in torch, NumPy or DALI, into a ConfigError that says what the loader needs of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        height, width = config.transform.height_width
        batch, pixels = _batch_bytes(config), config.batch_size * 3 * height * width
        ahead = config.prefetch + 1  # DALI keeps those on its device, the torch backend on the host
        raise ConfigError(
            f"making a batch on {device} needs more memory than is free: {type(error).__name__}: {' '.join(str(error).split())}. "
            f"{_batch_in_words(config)} take {batch / 1e9:.3g} GB, and as much again for the batch before, while it is "
            f"referenced; prefetch={config.prefetch} keeps {ahead} batches of {config.batch_size} decoded images, "
            f"{ahead * pixels / 1e9:.3g} GB. Lower batch_size, k or prefetch, use a 16-bit dtype, or free memory of others"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    # DALI says it in RuntimeErrors: "CUDA allocation failed", "Can't allocate 1024 bytes on device 0.", "std::bad_alloc"
    said = re.search(r"out of memory|allocation failed|can't allocate|bad_alloc", str(error), re.IGNORECASE)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or said is not None


def _batch_bytes(config: LoaderConfig) -> int:
    """Of the images of one batch, B*K*C*H*W elements."""
    height, width = config.transform.height_width
    element: torch.dtype = getattr(torch, config.dtype)
    return config.batch_size * _rows(config) * 3 * height * width * element.itemsize


def _batch_in_words(config: LoaderConfig) -> str:
    height, width = config.transform.height_width
    return f"batch_size={config.batch_size} times k={_rows(config)} images of 3x{height}x{width} in {config.dtype}"


def _rows(config: LoaderConfig) -> int:
    """K, the images handed out for each that is decoded."""
    return config.mix.k if config.mix is not None and config.expand else 1


def _environment_int(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} must be a whole number; found {value!r}")
    return int(value)
