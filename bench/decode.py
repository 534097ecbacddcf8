"""What does mixing cost on top of decoding? Images a second of decode, crop and resize alone, and mixed K = 5 ways.

    python bench/decode.py [--shards FOLDER]

"pixels" is the same loader that hands out its uint8 pixels, neither normalised nor mixed: what decoding alone gives.
In "dali in graph" DALI resizes too, as it does on a GPU; on a CPU the package leaves that to the host.
All is measured from the second epoch on, when each image has been decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from data import add_shards, an_epoch, chosen_shards
from torch import Tensor

from multimix_pipe import MultiMix, TrainTransform, open_loader
from multimix_pipe.benchmark.harness import forever, in_turn, parser, rate, ratio, report
from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.loader import Loader
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.mix_stage import HostMixStage

RESAMPLERS = {"antialias": True, "no antialias": False}


class PixelsOnly(HostMixStage):
    """Hands out what a backend has decoded."""

    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        return pixels


def from_the_second_epoch(loader: Loader) -> Iterator[object]:
    """Endless batches."""
    batches = forever(loader)
    for _ in islice(batches, len(loader)):
        pass
    return batches


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--images", type=int, default=1280, help="decoded a measurement")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    epoch = an_epoch(folder, 1600)
    contenders = {}
    for backend in ("dali", "torch", "dali in graph"):
        for resampler, antialias in RESAMPLERS.items():
            for rows in ("pixels", "K = 5"):
                if (backend, rows) == ("dali in graph", "pixels"):
                    continue
                loader = open_loader(
                    **epoch,
                    batch_size=args.batch_size,
                    num_classes=max(num_classes, 1000),
                    mix=MultiMix(k=5) if rows == "K = 5" else None,
                    transform=TrainTransform(size=224, antialias=antialias),
                    backend="torch" if backend == "torch" else "dali",
                    device="cpu",
                )
                stage = PixelsOnly(loader.context) if rows == "pixels" else None
                if backend == "dali in graph":
                    loader = Loader(loader.context, DaliExecutor(loader.context, stage, resizes=True))
                else:
                    loader = Loader(loader.context, make_executor(loader.context, stage))
                contenders[f"{backend}, {resampler}, {rows}"] = rate(
                    from_the_second_epoch(loader), args.batch_size, args.images // args.batch_size
                )
    figures = in_turn(contenders, unit="images/s", peer="dali, antialias, pixels", rounds=args.rounds)
    print(figures.table())
    values, of_pixels, torch_to = figures.values, {}, {}
    for resampler in RESAMPLERS:
        for backend in ("dali", "torch"):
            name = f"{backend}, {resampler}"
            of_pixels[name] = ratio(values[f"{name}, K = 5"], values[f"{name}, pixels"])
            print(f"{name}: mixed K = 5 ways at {of_pixels[name]:.3f} of the rate of its pixels alone")
        for other in ("dali", "dali in graph"):
            name = f"{other}, {resampler}"
            torch_to[name] = ratio(values[f"torch, {resampler}, K = 5"], values[f"{name}, K = 5"])
            print(f"torch / {name}, K = 5: {torch_to[name]:.2f}")
    results = {"rate": figures.summary(), "of_pixels": of_pixels, "torch_to": torch_to}
    report(__doc__.splitlines()[0], results, args.json)


if __name__ == "__main__":
    main()
