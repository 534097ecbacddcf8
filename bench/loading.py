"""What do mixing, each method, and B and K cost a loader, in images per second? Does its memory stay flat?

    python bench/loading.py mixing  [--shards FOLDER]    # K = 5 on top of decoding, by backend, with and without antialias
    python bench/loading.py methods [--shards FOLDER]    # each method relative to mixup
    python bench/loading.py sizes   [--shards FOLDER]    # other B and K relative to B = 64, K = 5
    python bench/loading.py memory  [--shards FOLDER]    # resident MB after step 200 and --steps, also of 100 times the data

mixing: "pixels" is the same loader returning its uint8 pixels, neither normalised nor mixed: the rate of decoding alone. On a CPU
the host resizes and mixes; "resized in the graph" and "mixed in the graph" leave this to DALI, as on a GPU.
methods: "switch" draws mixup or CutMix for each pair. "partners each" is mixup with another partner for each member, "crops each"
with another crop.

Rates are measured from the second epoch on, when each image has been decoded once; --images is how many are decoded per
measurement. Each measurement of memory has a process of its own, at B = 16, K = 5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import an_epoch, chosen_shards, open_backend, repeated
from harness import forever, in_a_new_process, in_turn, parser, rate, report, resident_memory
from multimix_pipe import Loader, MultiMix, TrainTransform
from multimix_pipe.dali.executor import DaliExecutor
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.plan import StepPlan
from multimix_pipe.runtime.context import ExecutedStep
from multimix_pipe.runtime.mix_stage import HostMixStage

METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in MultiMix.methods()},
    "switch": {"method": {"mixup": 0.5, "cutmix": 0.5}},
    "partners each": {"partners": "each"},
    "crops each": {"crops": "each"},
    "crops each, no mixing": {"crops": "each", "prob": 0.0},
}
SIZES = [(64, 5), (16, 5), (32, 5), (128, 5), (64, 1), (64, 2), (64, 10)]
"""Values of B and K; the first pair is what the others are compared with."""
SETTLED = 200
"""Step after which memory should no longer grow."""


Question = tuple[dict[str, Loader], list[tuple[str, str]]]
"""Loaders by name, and the pairs of names that are compared."""


class PixelsOnly(HostMixStage):
    """A stage that returns the decoded pixels unchanged."""

    def finish(self, step: StepPlan, pixels: Tensor) -> ExecutedStep:
        return ExecutedStep(step, pixels, self._context.tensors(step))


def mixing(opened: Callable[..., Loader], args: argparse.Namespace) -> Question:
    loaders: dict[str, Loader] = {}
    pairs: list[tuple[str, str]] = []
    for resampler, antialias in (("antialias", True), ("no antialias", False)):
        transform = TrainTransform(size=args.size, antialias=antialias)
        whole = {}
        for backend in args.backends:
            whole[backend] = name = f"{backend}, {resampler}, K = {args.k}"
            loaders[name] = opened(backend, k=args.k, transform=transform)
            context = opened(backend, k=None, transform=transform).context
            pixels = f"{backend}, {resampler}, pixels"
            loaders[pixels] = Loader(context, make_executor(context, PixelsOnly(context)))
            pairs.append((name, pixels))
        if "dali" in whole:
            for ends, what in (("pixels", "resized in the graph"), ("batch", "mixed in the graph")):
                context = opened("dali", k=args.k, transform=transform).context
                loaders[f"dali, {resampler}, {what}"] = Loader(context, DaliExecutor(context, ends=ends))  # type: ignore[arg-type]
            others = [name for name in loaders if name.startswith(f"dali, {resampler}") and "pixels" not in name]
            pairs += [(whole["torch"], name) for name in others if "torch" in whole]
    return loaders, pairs


def methods(opened: Callable[..., Loader], args: argparse.Namespace) -> Question:
    names = ["mixup", *(name for name in args.only or METHODS if name != "mixup")]
    loaders = {
        f"{backend}, {name}": opened(backend, mix=MultiMix(k=args.k, **METHODS[name]))
        for backend, name in product(args.backends, names)
    }
    pairs = [(f"{backend}, {name}", f"{backend}, mixup") for backend, name in product(args.backends, names[1:])]
    return loaders, pairs


def sizes(opened: Callable[..., Loader], args: argparse.Namespace) -> Question:
    loaders: dict[str, Loader] = {}
    pairs: list[tuple[str, str]] = []
    for backend in args.backends:
        names = [f"{backend}, B = {b}, K = {k}" for b, k in SIZES]
        loaders |= {name: opened(backend, batch_size=b, k=k) for name, (b, k) in zip(names, SIZES, strict=True)}
        pairs += [(name, names[0]) for name in names[1:]]
    return loaders, pairs


def measured_rates(
    loaders: dict[str, Loader], pairs: list[tuple[str, str]], args: argparse.Namespace
) -> dict[str, Any]:
    contenders = {}
    for name, loader in loaders.items():
        batches, b = forever(loader), loader.batch_size
        for _ in islice(batches, len(loader)):  # the first epoch
            pass
        contenders[name] = rate(batches, b, max(1, args.images // b), device=torch.device(args.device))
    figures = in_turn(contenders, unit="images/s", peer=next(iter(contenders)), rounds=args.rounds)
    print(figures.table())
    return {"rate": figures.summary(), "ratios": figures.compare(pairs)}


def memory(folder: Path, times: int, backend: str, steps: int) -> dict[str, float]:
    """Return the resident MB after step SETTLED and after the last step, on the shards `times` times over."""
    batches = forever(open_backend(backend, shards=repeated(folder, times), batch_size=16))
    found = {}
    for step, _ in enumerate(islice(batches, steps), 1):
        if step in (SETTLED, steps):
            found[f"step {step}"] = resident_memory()
    return found


def measured_memory(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    results = {}
    for backend, (times, steps) in product(args.backends, ((1, args.steps), (100, SETTLED))):
        name = f"{backend}, {times} times the data"
        results[name] = in_a_new_process(memory, folder, times, backend, steps)
        print(f"{name}: {', '.join(f'{size:.0f} MB after {step}' for step, size in results[name].items())}")
    return {"resident_mb": results}


def main() -> None:
    arguments = parser(__doc__, shards=True, device="cpu", batch_size=64, k=5, size=224, images=1280, steps=2000)
    questions = {"mixing": mixing, "methods": methods, "sizes": sizes}
    arguments.add_argument("question", choices=(*questions, "memory"))
    arguments.add_argument("--backends", nargs="+", choices=("dali", "torch"), default=["dali", "torch"])
    arguments.add_argument("--only", nargs="+", choices=METHODS, help="of the methods: these and mixup; default: all")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    settings = {name: getattr(args, name) for name in ("question", "device", "batch_size", "k", "size")}
    if args.question == "memory":
        found = measured_memory(folder, args)
    else:
        options = {"device": args.device, "batch_size": args.batch_size, "num_classes": num_classes}
        options |= {"transform": TrainTransform(size=args.size), **an_epoch(folder, max(640, args.images))}
        opened = partial(open_backend, k=args.k, **options)
        found = measured_rates(*questions[args.question](opened, args), args)
    report(__doc__, {**settings, **found}, args.json)


if __name__ == "__main__":
    main()
