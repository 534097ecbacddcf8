"""Chooses the backend that executes a loader's plans."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Literal

import torch

from multimix_pipe.config import Backend
from multimix_pipe.errors import ConfigError, MissingBackendError
from multimix_pipe.runtime.context import Executor, LoaderContext
from multimix_pipe.runtime.mix_stage import MixStage

logger = logging.getLogger("multimix_pipe")


def dali_import_error() -> Exception | None:
    """Return why the DALI backend cannot be imported, or None if it can."""
    try:
        importlib.import_module("multimix_pipe.dali.executor")
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return error
    return None


def choose_backend(backend: Backend, device: torch.device) -> Literal["dali", "torch"]:
    """Resolve the `backend` argument of `open_loader` on this machine.

    Raises MissingBackendError if backend="dali" and DALI cannot be imported or does not run on `device`, and ConfigError if DALI
    does not support that kind of device.
    """
    if backend == "torch":
        return "torch"
    if backend == "auto" and device.type == "mps":
        return "torch"
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'backend="dali" needs device "cpu" or "cuda"; found {str(device)!r}. Use backend="torch"')
    error = dali_import_error()
    if error is not None and backend == "auto":
        _warn_without_dali(str(error))
        return "torch"
    if error is not None:
        raise MissingBackendError(
            f'backend="dali" needs NVIDIA DALI, which cannot be imported here ({error}). Install it with '
            "pip install 'multimix-pipe[dali]' (CUDA 13) or 'multimix-pipe[dali-cuda12]', or use backend=\"torch\""
        ) from error
    problem = None if device.index is None else _gpu_problem(device.index)
    if problem is not None and backend == "auto":
        logger.warning('using backend="torch": NVIDIA DALI does not run on %s (%s)', device, problem)
        return "torch"
    if problem is not None:
        raise MissingBackendError(
            f'backend="dali" needs a DALI that runs on {device}; found: {problem}. Install the build for your driver\'s CUDA '
            "('multimix-pipe[dali]' for 13, 'multimix-pipe[dali-cuda12]' for 12), or use backend=\"torch\""
        )
    return "dali"


@cache
def _warn_without_dali(error: str) -> None:
    logger.warning(
        "using backend=\"torch\", as NVIDIA DALI cannot be imported (%s): pip install 'multimix-pipe[dali]', or pass "
        'backend="torch" if you want it',
        error,
    )


def _gpu_problem(device_id: int) -> str | None:
    from multimix_pipe.dali.decode_check import gpu_problem

    return gpu_problem(device_id)


def make_executor(context: LoaderContext, mix_stage: MixStage | None = None) -> Executor:
    """Make the executor of the context's backend. `mix_stage` replaces the default one of the device."""
    if context.backend == "dali":
        from multimix_pipe.dali.executor import DaliExecutor

        return DaliExecutor(context, mix_stage)
    from multimix_pipe.native.executor import NativeExecutor

    return NativeExecutor(context, mix_stage)
