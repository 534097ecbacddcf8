"""Which images do indexing, verify and the two backends accept? And how far apart are the pixels that both backends decode?

    python bench/judgement.py [--odd FOLDER]

Each image, whether generated or a file of FOLDER, is one sample of a shard, usually with the extension .jpg as in real data. A
backend decodes the whole image, then a small window at the top left and one at the bottom right. "index": rejected when the shard
is indexed, for both backends. "bad": rejected when decoded. Rows where the backends differ are marked with *.
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

    def line(self) -> str:
        """Format a row of the table."""
        results = [f"{self.verify[backend]:6}" for backend in BACKENDS]
        results += [f"{' '.join(self.backends[backend].values()):18}" for backend in BACKENDS]
        apart = "" if self.difference is None else f"{self.difference:.2f}"
        return f"{'*' if self.differs else ' '} {self.name[:56]:56} {'  '.join(results)} {apart}".rstrip()


def check_images(images: Mapping[str, bytes]) -> list[Outcome]:
    """Write images, given by file name, to a shard, and check which of them each part accepts."""
    shard = _write_shard(images)
    index = open_index(shard, progress=False)
    bad = {backend: {found.key for found in verify(shard, backend=backend, progress=False).bad} for backend in BACKENDS}
    pixels: dict[str, dict[int, torch.Tensor]] = {backend: {} for backend in BACKENDS}
    results: dict[str, dict[int, dict[str, str]]] = {backend: {} for backend in BACKENDS}
    transform = TrainTransform(size=SIZE, flip=0.0)
    for backend in BACKENDS:
        options = {"batch_size": 1, "num_classes": 1, "transform": transform, "num_threads": 1, "prefetch": 1}
        with open_backend(backend, k=None, shards=shard, **options) as loader:
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


def _write_shard(images: Mapping[str, bytes]) -> Path:
    members = []
    for number, (name, data) in enumerate(images.items()):
        extension = Path(name).suffix if Path(name).suffix in OWN_EXTENSIONS else ".jpg"
        members += [(f"{number:04}{extension}", data), (f"{number:04}.cls", b"0")]
    return write_tar(scratch_folder() / "odd.tar", members)


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


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--odd", type=Path, help="folder of further images to check")
    args = arguments.parse_args()
    logging.disable(logging.WARNING)
    images = odd_images()
    if args.odd:
        images |= {path.name: path.read_bytes() for path in sorted(args.odd.iterdir()) if path.suffix != ".tsv"}
    outcomes = check_images(images)
    print(f"  {'':56} verify:         {'backend torch':18}  {'backend dali':18} pixels")
    print(f"  {'':56} torch   dali    {' '.join(WINDOWS):18}  {' '.join(WINDOWS):18} differ by")
    for row in outcomes:
        print(row.line())
    print(f"the backends differ on {sum(row.differs for row in outcomes)} of {len(outcomes)} images")
    unfound = [
        f"{row.name} ({backend})"
        for row in outcomes
        for backend in BACKENDS
        if row.verify[backend] == "ok" and set(row.backends[backend].values()) != {"ok"}
    ]
    print(f"rejected by a backend but accepted by verify with its decoder: {', '.join(unfound) or 'none'}")
    rows = [asdict(row) | {"differs": row.differs} for row in outcomes]
    report(__doc__, {"judged": rows, "not_found_by_verify": unfound}, args.json)


if __name__ == "__main__":
    main()
