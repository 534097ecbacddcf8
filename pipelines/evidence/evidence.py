"""What the studies of this folder share: images in memory, bootstrap intervals, and a results file that can be continued."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from multimix_pipe import EvalTransform, MultiMixError, __version__, open_loader
from multimix_pipe.cli.demo.shapes import OUTLINES, draw_shape
from multimix_pipe.runtime.machine import describe_machine, package_versions

Float = NDArray[np.float64]
RESAMPLES = 2000


# data


def read_images(shards: str | None, size: int, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (N, 3, size, size) float32, their labels (N,) and the class names: of `shards`, or generated shapes.

    N is at most `count`; the images are in a random order, the same each time.
    """
    if shards is None:
        images, labels = _shapes(size, count)
        return images, labels, list(OUTLINES)
    whole = EvalTransform(size=size, resize=size)
    with open_loader(shards, batch_size=500, transform=whole, seed=0) as loader:
        total, classes = loader.num_samples, loader.classes
    chosen = np.random.default_rng(0).permutation(total)[:count]
    images, labels = torch.empty(total, 3, size, size), torch.empty(total, dtype=torch.int64)
    with open_loader(shards, batch_size=500, transform=whole, shuffle="none", last_batch="partial") as loader:
        done = 0
        for batch in loader:
            images[done : done + len(batch.labels)], labels[done : done + len(batch.labels)] = (
                batch.images,
                batch.labels,
            )
            done += len(batch.labels)
    return images[chosen], labels[chosen], list(classes)


def _shapes(size: int, count: int) -> tuple[Tensor, Tensor]:
    names = list(OUTLINES)
    pixels = np.empty((count, size, size, 3), dtype=np.float32)
    for number in range(count):
        drawn = Image.open(io.BytesIO(draw_shape(names[number % len(names)], np.random.default_rng(number))))
        pixels[number] = np.asarray(drawn.convert("RGB").resize((size, size)), dtype=np.float32) / 64 - 2
    order = np.random.default_rng(0).permutation(count)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images[order], torch.arange(count)[order] % len(names)


def checksum(*tensors: Tensor) -> str:
    """Return a short checksum of tensors, which tells data sets apart."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(np.ascontiguousarray(tensor.numpy()), value)
    return f"{value:08x}"


# statistics


def resample(n: int, seed: int = 0, resamples: int = RESAMPLES) -> Float:
    """Return how often each of n units occurs in the sample itself (row 0) and in `resamples` bootstrap samples of it."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn])


def interval(values: Float) -> list[float]:
    """Return [estimate, low, high] with a 95% percentile interval; values[0] is the estimate, the others are resamples."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return [float(f"{number:.4g}") for number in (values[0], low, high)]


def show(found: list[float], digits: int = 2) -> str:
    """Format an interval as `1.23 (1.20 .. 1.27)`."""
    return f"{found[0]:.{digits}f} ({found[1]:.{digits}f} .. {found[2]:.{digits}f})"


# results


class Results:
    """A JSON file of settings, machine and named parts, written after each part, so that a run that was stopped continues."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        settings = json.loads(json.dumps(settings))
        self.parts: dict[str, Any] = {}
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                stored, self.parts = found["settings"], found["parts"]
            except (ValueError, KeyError, TypeError, OSError) as error:
                sys.exit(f"{path}: must be a results file of this script; found none ({error!r}): choose another --out")
            different = [
                f"{name} {stored.get(name)!r} in the file, {settings.get(name)!r} now"
                for name in {**stored, **settings}
                if stored.get(name) != settings.get(name)
            ]
            if different:
                sys.exit(
                    f"{path}: must hold results of the same settings; found {'; '.join(different)}: choose another --out"
                )
        self.head = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit(),
            "versions": {"multimix_pipe": __version__, "python": sys.version.split()[0], **package_versions()},
            "machine": {**describe_machine(), "torch_threads": torch.get_num_threads()},
            "settings": settings,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"{path.parent}: must be a folder that can be written; found {error}: choose another --out")

    def add(self, name: str, part: object) -> None:
        """Store a part and write the file."""
        self.parts[name] = json.loads(json.dumps(part))
        lines = ",\n".join(f"  {json.dumps(key)}: {_lines(value)}" for key, value in self.parts.items())
        head = json.dumps(self.head, indent=1)[:-2]
        temporary = self.path.with_suffix(".part")
        temporary.write_text(f'{head},\n "parts": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
        temporary.replace(self.path)


def _lines(value: Any) -> str:
    """Return JSON with one line for each entry of a part, and of the dictionaries in it."""
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = [
        f"{json.dumps(key)}: " + ("{\n    " + ",\n    ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in item.items()) + "}"
                                  if isinstance(item, dict) and item else json.dumps(item))
        for key, item in value.items()
    ]  # fmt: skip
    return "{\n   " + ",\n   ".join(inner) + "}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with the message alone for errors that the user can mend."""
    try:
        yield
    except MultiMixError as error:
        sys.exit(f"error: {error}")


def commit() -> str | None:
    """Return the commit of the source tree, with "+" after it if files of the package differ from it; None outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../../multimix_pipe", ".")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
