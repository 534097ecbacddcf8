"""Which images do indexing, verify and the two backends accept? And how far apart are the pixels that both backends decode?

A backend decodes the whole image, then a small window at the top left and one at the bottom right. "index": rejected when the
shard is indexed, for both backends. "bad": rejected when decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.tars import write_tar
from multimix_pipe import BadSampleError, TrainTransform, open_loader
from multimix_pipe.config import IMAGENET_STD, Backend
from multimix_pipe.loader import Loader
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.shards import Index, open_index
from multimix_pipe.verify import verify

BACKENDS: tuple[Backend, ...] = ("torch", "dali")
WINDOWS = ("whole", "top", "bottom")
SIZE = 64
OWN_EXTENSIONS = (".png", ".jpeg", ".webp")
"""Extensions that a sample keeps; all other files become .jpg members."""


@dataclass
class Outcome:
    """What happened to one image. Each result is "ok", "index" or "bad"."""

    name: str
    verify: dict[Backend, str]
    """The result of verify, by the backend whose decoder it used."""
    backends: dict[str, dict[str, str]]
    """The result of each backend, by window."""
    difference: float | None
    """Mean absolute difference between the backends' whole images at SIZE, in 0..255; None if either failed."""

    @property
    def differs(self) -> bool:
        """Whether the backends' results differ for some window."""
        return self.backends["torch"] != self.backends["dali"]


def check_images(images: Mapping[str, bytes], folder: Path) -> list[Outcome]:
    """Write images, given by file name, to a shard in `folder`, and check which of them each part accepts."""
    shard = _write_shard(images, folder)
    index = open_index(shard, progress=False)
    bad = {backend: {found.key for found in verify(shard, backend=backend, progress=False).bad} for backend in BACKENDS}
    pixels: dict[str, dict[int, torch.Tensor]] = {backend: {} for backend in BACKENDS}
    results: dict[str, dict[int, dict[str, str]]] = {backend: {} for backend in BACKENDS}
    transform = TrainTransform(size=SIZE, flip=0.0)
    for backend in BACKENDS:
        options: dict[str, Any] = {"num_classes": 1, "transform": transform, "num_threads": 1, "prefetch": 1}
        with open_loader(shard, backend=backend, batch_size=1, mix=None, device="cpu", **options) as loader:
            for sample in range(len(index)):
                results[backend][sample] = _decode_windows(loader, sample, pixels[backend])
    scale = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    outcomes = []
    for sample, name in enumerate(images):
        both = [pixels[backend].get(sample) for backend in BACKENDS]
        apart = None if both[0] is None or both[1] is None else float(((both[0] - both[1]).abs() * scale).mean())
        verified = {backend: _verified(index, sample, bad[backend]) for backend in BACKENDS}
        outcomes.append(Outcome(name, verified, {backend: results[backend][sample] for backend in BACKENDS}, apart))
    return outcomes


def _write_shard(images: Mapping[str, bytes], folder: Path) -> Path:
    members = []
    for number, (name, data) in enumerate(images.items()):
        extension = Path(name).suffix if Path(name).suffix in OWN_EXTENSIONS else ".jpg"
        members += [(f"{number:04}{extension}", data), (f"{number:04}.cls", b"0")]
    return write_tar(folder / "judged.tar", members)


def _verified(index: Index, sample: int, bad: set[str]) -> str:
    if index.problem[sample]:
        return "index"
    return "bad" if index.key(sample) in bad else "ok"


def _decode_windows(loader: Loader, sample: int, pixels: dict[int, torch.Tensor]) -> dict[str, str]:
    """Return the result for each window of a sample, and store the whole image in `pixels` if it can be decoded."""
    height, width = int(loader.index.height[sample]), int(loader.index.width[sample])
    rows, columns = max(1, height // 8), max(1, width // 8)
    windows = ((0, 0, height, width), (0, 0, rows, columns), (height - rows, width - columns, rows, columns))
    results = {}
    for name, window in zip(WINDOWS, windows, strict=True):
        step = replace(
            loader.context.plan.step(0, 0, 1), sample=np.array([sample]), window=np.array([window], dtype=np.float32)
        )
        executor = make_executor(loader.context)
        try:
            (executed,) = executor.run([step])
        except BadSampleError:
            results[name] = "index" if loader.index.problem[sample] else "bad"
        else:
            results[name] = "ok"
            if name == WINDOWS[0]:
                pixels[sample] = executed.images[0].clone()
        finally:
            executor.close()
    return results
