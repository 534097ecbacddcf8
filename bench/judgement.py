"""Which images does each part take: indexing, verify, the two backends? And how far apart are the pixels of those both take?

    python bench/judgement.py [--odd FOLDER]

Each image, generated odd ones and every file of FOLDER, is a sample of a shard of its own kind, most under .jpg as in real data.
A backend decodes its whole, then a small window at the top left and one at the bottom right. "index": refused when the shards are
indexed, the same for all. "bad": refused when it is decoded. Rows where the backends differ are marked with *.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data import open_backend, scratch_folder, write_tar
from harness import parser, report
from multimix_pipe import BadSampleError, TrainTransform
from multimix_pipe.config import IMAGENET_STD, Backend
from multimix_pipe.loader import Loader
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.shards import Index, open_index
from multimix_pipe.verify import verify
from odd_images import odd_images

BACKENDS: tuple[Backend, ...] = ("torch", "dali")
WINDOWS = ("whole", "top", "bottom")
SIZE = 64
OWN_EXTENSIONS = (".png", ".jpeg", ".webp")
"""Files of a folder keep these; all others are samples under .jpg."""


@dataclass
class Judged:
    """What was said of one image: "ok", "index" or "bad"."""

    name: str
    verify: dict[Backend, str]
    """By the backend whose decoder judged."""
    backends: dict[str, dict[str, str]]
    """By backend, then by window."""
    difference: float | None
    """Mean absolute difference of 0..255 values between the backends' whole images at SIZE; None where one has none."""

    @property
    def differs(self) -> bool:
        """Whether the backends do not say the same of each window."""
        return self.backends["torch"] != self.backends["dali"]

    def line(self) -> str:
        """A row of the table."""
        told = [f"{self.verify[backend]:6}" for backend in BACKENDS]
        told += [f"{' '.join(self.backends[backend].values()):18}" for backend in BACKENDS]
        apart = "" if self.difference is None else f"{self.difference:.2f}"
        return f"{'*' if self.differs else ' '} {self.name[:56]:56} {'  '.join(told)} {apart}".rstrip()


def judge(images: Mapping[str, bytes]) -> list[Judged]:
    """Put images, by file name, into a shard, and ask each part for its judgement."""
    shard = _written(images)
    index = open_index(shard, progress=False)
    bad = {backend: {found.key for found in verify(shard, backend=backend, progress=False).bad} for backend in BACKENDS}
    pixels: dict[str, dict[int, torch.Tensor]] = {backend: {} for backend in BACKENDS}
    told: dict[str, dict[int, dict[str, str]]] = {backend: {} for backend in BACKENDS}
    transform = TrainTransform(size=SIZE, flip=0.0)
    for backend in BACKENDS:
        options = {"batch_size": 1, "num_classes": 1, "transform": transform, "num_threads": 1, "prefetch": 1}
        with open_backend(backend, k=None, shards=shard, **options) as loader:
            for sample in range(len(index)):
                told[backend][sample] = _told(loader, sample, pixels[backend])
    scale = 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    judged = []
    for sample, name in enumerate(images):
        both = [pixels[backend].get(sample) for backend in BACKENDS]
        apart = None if both[0] is None or both[1] is None else float(((both[0] - both[1]).abs() * scale).mean())
        says = {backend: _verified(index, sample, bad[backend]) for backend in BACKENDS}
        judged.append(Judged(name, says, {backend: told[backend][sample] for backend in BACKENDS}, apart))
    return judged


def _written(images: Mapping[str, bytes]) -> Path:
    members = []
    for number, (name, data) in enumerate(images.items()):
        extension = Path(name).suffix if Path(name).suffix in OWN_EXTENSIONS else ".jpg"
        members += [(f"{number:04}{extension}", data), (f"{number:04}.cls", b"0")]
    return write_tar(scratch_folder() / "odd.tar", members)


def _verified(index: Index, sample: int, bad: set[str]) -> str:
    if index.problem[sample]:
        return "index"
    return "bad" if index.key(sample) in bad else "ok"


def _told(loader: Loader, sample: int, pixels: dict[int, torch.Tensor]) -> dict[str, str]:
    """What a loader's backend says of each window of a sample; the pixels of its whole are noted, where it has any."""
    height, width = int(loader.index.height[sample]), int(loader.index.width[sample])
    rows, columns = max(1, height // 8), max(1, width // 8)
    windows = ((0, 0, height, width), (0, 0, rows, columns), (height - rows, width - columns, rows, columns))
    told = {}
    for name, window in zip(WINDOWS, windows, strict=True):
        step = replace(
            loader.context.plan.step(0, 0, 1), sample=np.array([sample]), window=np.array([window], dtype=np.float32)
        )
        executor = make_executor(loader.context)
        try:
            (executed,) = executor.run([step])
        except BadSampleError:
            told[name] = "index" if loader.index.problem[sample] else "bad"
        else:
            told[name] = "ok"
            if name == WINDOWS[0]:
                pixels[sample] = executed.images[0].clone()
        finally:
            executor.close()
    return told


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--odd", type=Path, help="a folder of images to judge too")
    args = arguments.parse_args()
    logging.disable(logging.WARNING)
    images = odd_images()
    if args.odd:
        images |= {path.name: path.read_bytes() for path in sorted(args.odd.iterdir()) if path.suffix != ".tsv"}
    judged = judge(images)
    print(f"  {'':56} verify:         {'backend torch':18}  {'backend dali':18} pixels")
    print(f"  {'':56} torch   dali    {' '.join(WINDOWS):18}  {' '.join(WINDOWS):18} differ by")
    for row in judged:
        print(row.line())
    print(f"{sum(row.differs for row in judged)} of {len(judged)} differ")
    unfound = [
        f"{row.name} ({backend})"
        for row in judged
        for backend in BACKENDS
        if row.verify[backend] == "ok" and set(row.backends[backend].values()) != {"ok"}
    ]
    print(f"found by a backend and not by verify with its decoder: {', '.join(unfound) or 'none'}")
    rows = [asdict(row) | {"differs": row.differs} for row in judged]
    report(__doc__, {"judged": rows, "not_found_by_verify": unfound}, args.json)


if __name__ == "__main__":
    main()
