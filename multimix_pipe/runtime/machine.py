"""What a result was made with: versions of packages, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from multimix_pipe.shards.cores import usable_cores

PACKAGES = ("torch", "webdataset", "numpy", "scipy", "simplejpeg", "pillow", "numba")
"""What this package requires, and Numba, which it gains from."""
DALI_PREFIX = "nvidia-dali-cuda"  # followed by the CUDA version: 130, 120


def package_versions(*more: str) -> dict[str, str | None]:
    """Version by distribution name, None where it is not installed; DALI under the name that it is installed by."""
    found: dict[str, str | None] = {}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    names = {dist.metadata["Name"]: dist.version for dist in distributions()}
    dali = [name for name in names if name and name.lower().startswith(DALI_PREFIX)]
    return {**found, **{name: names[name] for name in dali}, **({} if dali else {"DALI": None})}


def describe_machine() -> dict[str, str | int]:
    """CPU model, usable cores, memory and platform, and the GPU where torch sees one."""
    import torch

    kernel = platform.uname()
    machine: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        # without the host's own build of its kernel
        "platform": f"{kernel.system} {kernel.release.split('-')[0]} {kernel.machine}",
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
