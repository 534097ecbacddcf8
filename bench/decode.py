"""What does mixing cost on top of decoding? Images per second of decode, crop and resize alone, and with K = 5 mixing.

    python bench/decode.py [--shards FOLDER]

"pixels" is the same loader returning its uint8 pixels, neither normalised nor mixed: the rate of decoding alone. In "dali in
graph" DALI also resizes, as it does on a GPU; on a CPU the package resizes on the host. Measurements start with the second epoch,
when each image has been decoded once. --images is the number of images decoded per measurement.
"""

from __future__ import annotations

from itertools import islice

from torch import Tensor

from data import an_epoch, chosen_shards, open_backend
from harness import forever, in_turn, parser, rate, report
from multimix_pipe import TrainTransform
from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.loader import Loader
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.context import ExecutedStep
from multimix_pipe.runtime.mix_stage import HostMixStage

RESAMPLERS = {"antialias": True, "no antialias": False}
KINDS = [("dali", "pixels"), ("dali", "K = 5"), ("torch", "pixels"), ("torch", "K = 5"), ("dali in graph", "K = 5")]


class PixelsOnly(HostMixStage):
    """A stage that returns the decoded pixels unchanged."""

    def finish(self, step: StepPlan, pixels: Tensor) -> ExecutedStep:
        return ExecutedStep(step, pixels, self._context.tensors(step))


def main() -> None:
    args = parser(__doc__, shards=True, batch_size=64, images=1280).parse_args()
    folder, num_classes = chosen_shards(args.shards)
    epoch = an_epoch(folder, 1600)
    contenders = {}
    for kind, rows in KINDS:
        for resampler, antialias in RESAMPLERS.items():
            context = open_backend(
                "torch" if kind == "torch" else "dali",
                k=None if rows == "pixels" else 5,
                batch_size=args.batch_size,
                num_classes=max(num_classes, 1000),
                transform=TrainTransform(size=224, antialias=antialias),
                **epoch,
            ).context
            stage = PixelsOnly(context) if rows == "pixels" else None
            in_graph = kind == "dali in graph"
            executor = DaliExecutor(context, stage, ends="pixels") if in_graph else make_executor(context, stage)
            loader = Loader(context, executor)
            batches = forever(loader)
            for _ in islice(batches, len(loader)):  # the first epoch
                pass
            contenders[f"{kind}, {resampler}, {rows}"] = rate(batches, args.batch_size, args.images // args.batch_size)
    figures = in_turn(contenders, unit="images/s", peer="dali, antialias, pixels", rounds=args.rounds)
    print(figures.table())
    of_pixels, torch_to = {}, {}
    for resampler in RESAMPLERS:
        for backend in ("dali", "torch"):
            name = f"{backend}, {resampler}"
            of_pixels[name] = figures.ratio(f"{name}, K = 5", f"{name}, pixels")
            print(f"{name}: K = 5 mixing runs at {of_pixels[name]:.3f} of the rate of its pixels alone")
        for other in ("dali", "dali in graph"):
            name = f"{other}, {resampler}"
            torch_to[name] = figures.ratio(f"torch, {resampler}, K = 5", f"{name}, K = 5")
            print(f"torch / {name}, K = 5: {torch_to[name]:.2f}")
    report(__doc__, {"rate": figures.summary(), "of_pixels": of_pixels, "torch_to": torch_to}, args.json)


if __name__ == "__main__":
    main()
