"""What does mixing cost on top of decoding? Images a second of decode, crop and resize alone, and mixed K = 5 ways.

    python bench/decode.py [--shards FOLDER]

"pixels" is the same loader that hands out its uint8 pixels, neither normalised nor mixed: what decoding alone gives.
"""

from __future__ import annotations

import statistics

from data import add_shards, chosen_shards, repeated
from torch import Tensor

from multimix_pipe import MultiMix, TrainTransform, open_loader
from multimix_pipe.backends import make_executor
from multimix_pipe.benchmark.harness import forever, in_turn, parser, rate, report
from multimix_pipe.finishing import HostFinisher
from multimix_pipe.plan import StepPlan


class PixelsOnly(HostFinisher):
    """Hands out what a backend has decoded."""

    def finish(self, step: StepPlan, pixels: Tensor) -> Tensor:
        return pixels


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--images", type=int, default=1280, help="decoded a measurement")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards = repeated(folder, 4)
    contenders = {}
    for backend in ("dali", "torch"):
        for antialias in (True, False):
            for mix in (None, MultiMix(k=5)):
                loader = open_loader(
                    shards,
                    batch_size=args.batch_size,
                    num_classes=max(num_classes, 1000),
                    mix=mix,
                    transform=TrainTransform(size=224, antialias=antialias),
                    backend=backend,
                    device="cpu",
                )
                if mix is None:
                    loader._executor = executor = make_executor(backend, loader._job)
                    executor._finisher = PixelsOnly(loader._job)  # type: ignore[attr-defined]
                name = f"{backend}, {'antialias' if antialias else 'no antialias'}"
                contenders[f"{name}, {'pixels' if mix is None else 'K = 5'}"] = rate(
                    forever(loader), args.batch_size, args.images // args.batch_size
                )
    figures = in_turn(contenders, unit="images/s", peer="dali, antialias, pixels", rounds=args.rounds)
    print(figures.table())
    kept = {}
    for name, values in figures.values.items():
        if name.endswith("K = 5"):
            alone = figures.values[name.replace("K = 5", "pixels")]
            kept[name] = statistics.median(mixed / plain for mixed, plain in zip(values, alone, strict=True))
            print(f"{name}: {kept[name]:.3f} of the rate of its pixels alone")
    ratios = {
        kind: statistics.median(
            torch / dali
            for torch, dali in zip(
                figures.values[f"torch, {kind}, K = 5"], figures.values[f"dali, {kind}, K = 5"], strict=True
            )
        )
        for kind in ("antialias", "no antialias")
    }
    for kind, ratio in ratios.items():
        print(f"torch / dali, {kind}, K = 5: {ratio:.2f}")
    report(__doc__.splitlines()[0], {"rate": figures.summary(), "of_pixels": kept, "torch_to_dali": ratios}, args.json)


if __name__ == "__main__":
    main()
