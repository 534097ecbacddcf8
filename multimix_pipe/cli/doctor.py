"""multimix-pipe doctor: show what is installed and what `auto` selects, and check that each backend decodes and mixes."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from multimix_pipe.config import Backend, TrainTransform
from multimix_pipe.mixing import MultiMix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from multimix_pipe.loader import Loader

PAIRS, K, CLASSES = 10, 5, 10

CPU_TOLERANCE, GPU_TOLERANCE = 1e-6, 1e-5
"""Largest allowed difference between a backend's normalised, mixed pixels and the reference."""
DECODER_TOLERANCE = 2.0
"""Largest allowed mean difference between the backends' pixels, 0..255: their decoders and resamplers differ."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="show what is installed and test each backend",
        description="Show what is installed and which backend `auto` selects, then pack a few images and check that each "
        "backend decodes and mixes them correctly. The exit status is 1 if a check fails.",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the versions, then one OK or FAIL line per check."""
    _print_versions()
    with tempfile.TemporaryDirectory() as folder, _quiet_loaders():
        shards = _make_shards(Path(folder))
        return 0 if _try_backends(shards) else 1


def _print_versions() -> None:
    from multimix_pipe import __version__
    from multimix_pipe.runtime.machine import describe_machine, package_versions

    print(f"multimix_pipe {__version__}, Python {platform.python_version()} ({sys.executable})")
    print(", ".join(f"{name}: {value}" for name, value in describe_machine().items()))
    for name, version in package_versions().items():
        print(f"{name:22} {version or _advice(name)}")


def _advice(name: str) -> str:
    if name == "DALI":
        return "not installed: pip install 'multimix-pipe[dali]' (CUDA 13, and CPUs) or 'multimix-pipe[dali-cuda12]'"
    if name == "numba":
        return "not installed, mixing on a CPU is slower: pip install 'multimix-pipe[fast]'"
    return f"not installed: pip install {name}"


def _try_backends(shards: str) -> bool:
    """Check every available backend on every available device; return whether all checks passed."""
    import torch

    from multimix_pipe.loader.backend import dali_import_error
    from multimix_pipe.loader.rank import choose_device

    print(f"CUDA: {_cuda()}; MPS: {'yes' if torch.backends.mps.is_available() else 'no'}")
    device = choose_device("auto")
    dali_error = dali_import_error()
    taken: Backend = "dali" if dali_error is None and device.type != "mps" else "torch"
    why = "DALI is installed" if dali_error is None else f"DALI cannot be imported: {dali_error}"
    if device.type == "mps":
        why = "DALI does not support MPS"
    print(f"auto selects backend {taken} on {device}: {why}\n")
    with _open(shards, "auto", "auto") as loader:
        good = _report(
            (loader.backend, loader.device) == (taken, device), f"auto opens {loader.backend} on {loader.device}"
        )
    devices = ["cpu"] if device.type == "cpu" else ["cpu", str(device)]
    backends: list[Backend] = ["torch", "dali"] if dali_error is None else ["torch"]
    seen: list[_Seen] = []
    for backend in backends:
        for name in devices:
            if backend == "dali" and name == "mps":
                continue
            try:
                found = _mix(shards, backend, name)
            except Exception as error:  # any error at all is a finding to report
                good &= _report(False, f"{backend} on {name}: {type(error).__name__}: {' '.join(str(error).split())}")
                continue
            good &= _check(found, seen)
            seen.append(found)
    return good


def _cuda() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return "torch sees no device" if torch.version.cuda else "no, this torch is built without CUDA"


class _Seen:
    """The first batch of a backend on a device: unmixed, mixed, and mixed by the reference implementation."""

    def __init__(self, name: str, plain: Loader, mixed: Loader) -> None:
        from multimix_pipe.mixing import reference

        a, b = next(iter(plain)), next(iter(mixed))
        self.name, self.gpu = name, mixed.device.type != "cpu"
        self.plain, self.mixed = a.images.cpu().numpy(), b.images.cpu().numpy()
        self.keys, self.targets, self.lam = b.keys, _array(b.targets), b.plan.lam
        labels = b.labels.cpu().numpy()
        self.wanted = reference.mix_images(self.plain, b.plan.mix)
        self.wanted_targets = reference.mix_targets(labels, b.plan.mix, CLASSES)


def _array(tensor: object) -> NDArray[np.float32]:
    import torch

    assert isinstance(tensor, torch.Tensor)
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array


def _mix(shards: str, backend: Backend, device: str) -> _Seen:
    with _open(shards, backend, device, expand=False) as plain, _open(shards, backend, device) as mixed:
        return _Seen(f"{backend} on {device}", plain, mixed)


def _check(found: _Seen, before: list[_Seen]) -> bool:
    import numpy as np

    off = float(np.abs(found.mixed - found.wanted).max())
    off_targets = float(np.abs(found.targets - found.wanted_targets).max())
    allowed = GPU_TOLERANCE if found.gpu else CPU_TOLERANCE
    good = _report(
        found.mixed.shape == found.wanted.shape and max(off, off_targets) <= allowed,
        f"{found.name}: decodes {PAIRS} images and mixes them {K} ways; largest difference from the reference "
        f"{off:.1e} in images, {off_targets:.1e} in targets",
    )
    for other in before:
        same = found.keys == other.keys and np.array_equal(found.lam, other.lam)
        same &= np.allclose(found.targets, other.targets, rtol=0, atol=allowed)
        std = np.asarray(TrainTransform().std, np.float32)[:, None, None]
        apart = float((np.abs(found.plain - other.plain) * std).mean() * 255)
        good &= _report(
            same and apart <= DECODER_TOLERANCE,
            f"{found.name} against {other.name}: {'same' if same else 'DIFFERENT'} order, weights and targets; mean pixel "
            f"difference {apart:.2f} of 255 (limit {DECODER_TOLERANCE:g}, as decoders and resamplers differ)",
        )
    return good


def _report(good: bool, what: str) -> bool:
    print(f"{'OK  ' if good else 'FAIL'} {what}", flush=True)
    return good


def _open(shards: str, backend: Backend, device: str, expand: bool = True) -> Loader:
    from multimix_pipe.loader import open_loader

    return open_loader(
        shards,
        batch_size=PAIRS,
        num_classes=CLASSES,
        mix=MultiMix(k=K),
        transform=TrainTransform(size=64),
        backend=backend,
        device=device,
        rank=0,
        world_size=1,
        expand=expand,
    )


def _make_shards(folder: Path) -> str:
    from multimix_pipe.cli.demo.shapes import write_shapes
    from multimix_pipe.shards.index import open_index
    from multimix_pipe.shards.pack import pack

    write_shapes(folder / "images", 1, 0, progress=False)
    pack(folder / "images", folder / "shards", progress=False)
    shards = os.path.join(folder, "shards", "train")
    open_index(shards, progress=False)
    return shards


@contextmanager
def _quiet_loaders() -> Iterator[None]:
    """Silence the loaders' log lines about what they opened, which the checks print themselves."""
    logger = logging.getLogger("multimix_pipe")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING) if before > logging.DEBUG else before)
    try:
        yield
    finally:
        logger.setLevel(before)
