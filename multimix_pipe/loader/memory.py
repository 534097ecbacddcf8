"""Checks that a batch fits in the memory of its device, and explains running out of memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multimix_pipe.errors import ConfigError
from multimix_pipe.runtime.context import LoaderConfig


def check_batch_fits(config: LoaderConfig, device: torch.device) -> None:
    """Raise ConfigError if a single batch is larger than the device's memory."""
    needed = _batch_bytes(config)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            f"a batch must fit in the memory of {device}, {memory / 1e9:.3g} GB; {_batch_in_words(config)} "
            f"take {needed / 1e9:.3g} GB. Lower batch_size or k"
        )


@contextmanager
def explain_out_of_memory(config: LoaderConfig, device: torch.device) -> Iterator[None]:
    """Convert out-of-memory errors of torch, NumPy and DALI to a ConfigError that states how much the loader needs."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        height, width = config.transform.height_width
        batch, crops = _batch_bytes(config), config.batch_size * _crops(config)
        decoded = crops * 3 * height * width
        ahead = config.prefetch + 1  # the DALI backend keeps them on the device, the torch backend on the host
        raise ConfigError(
            f"making a batch on {device} needs more memory than is free: {type(error).__name__}: {' '.join(str(error).split())}. "
            f"{_batch_in_words(config)} take {batch / 1e9:.3g} GB, and the previous batch takes as much again while you hold "
            f"it; prefetch={config.prefetch} keeps {ahead} batches of {crops} decoded images, "
            f"{ahead * decoded / 1e9:.3g} GB. Lower batch_size, k or prefetch, use a 16-bit dtype, or free memory elsewhere"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # DALI raises RuntimeErrors: "CUDA allocation failed", "Can't allocate 1024 bytes on device 0.", "std::bad_alloc"
    return re.search(r"out of memory|allocation failed|can't allocate|bad_alloc", str(error), re.IGNORECASE) is not None


def _batch_bytes(config: LoaderConfig) -> int:
    """Return the size in bytes of the images of one batch, B*K*C*H*W elements."""
    height, width = config.transform.height_width
    element: torch.dtype = getattr(torch, config.dtype)
    return config.batch_size * _rows(config) * 3 * height * width * element.itemsize


def _batch_in_words(config: LoaderConfig) -> str:
    height, width = config.transform.height_width
    return f"batch_size={config.batch_size} times k={_rows(config)} images of 3x{height}x{width} in {config.dtype}"


def _rows(config: LoaderConfig) -> int:
    """Return K, the images handed out per decoded image."""
    return config.mix.k if config.mix is not None and config.expand else _crops(config)


def _crops(config: LoaderConfig) -> int:
    """Return how many crops are made of each decoded image, in the epochs with the most."""
    return max((mix.k for mix in config.mix.mixes if mix.crops == "each"), default=1) if config.mix is not None else 1
