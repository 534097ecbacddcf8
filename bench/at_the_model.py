"""What do ManifoldMix and PuzzleMix cost? Masks for K members against masks for one, and both methods next to a training step.

    python bench/at_the_model.py [--shards FOLDER] [--device cuda --batch-size 64]

"masks" are the graph cuts of 64 pairs alone, of the saliency that a network has on photos, by the compiled kernel where Numba is
installed and by SciPy. "steps" are those of torchvision's ResNet-18 on B*K rows: forward, backward, SGD. ManifoldMix is the whole
step, which is cheaper than one with mixed images, because the layers below the drawn one see B rows. PuzzleMix is the mixing
alone, which comes on top of the step: its saliency pass, the cuts for each number of blocks, and the mixed images. On a CPU
everything is CPU time, in one thread, which other work on the machine hardly changes; on a GPU it is wall time, with bfloat16
autocast.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data import chosen_shards, open_backend
from harness import Figures, in_turn, parser, report, seconds
from multimix_pipe import Batch, ManifoldMix, MultiMix, MultiMixLoss, PuzzleMix, TrainTransform, apply_mix
from multimix_pipe.plan import draw_mixing
from multimix_pipe.training import graph_cut
from multimix_pipe.training.puzzle import _cut
from training import make_network

BLOCKS = (2, 4, 8, 16)
MEMBERS = (1, 2, 5, 10)
LAYERS = ("layer1", "layer2", "layer3")


def masks(model: nn.Module, plain: Batch, rounds: int) -> dict[str, Figures]:
    """Measure the graph cuts of a batch for each number of blocks and both solvers, in ms of CPU time, in one thread."""
    saliency, _ = PuzzleMix(model)._saliency(plain)
    compiled = graph_cut.compiled_cut

    def timed(n: int, k: int, solver: Callable[[], Any]) -> float:
        mix = draw_mixing(MultiMix(k=k), 0, 0, 0, len(plain.images))
        energies = PuzzleMix(model, blocks=n)._energies(plain.images, mix, saliency, n)
        graph_cut.compiled_cut = solver  # type: ignore[assignment]
        start = time.thread_time()
        for _ in range(5):
            _cut(energies, mix.lam)
        spent = time.thread_time() - start
        graph_cut.compiled_cut = compiled
        return 1e3 * spent / 5

    solvers: dict[str, Callable[[], Any]] = {"compiled": compiled, "SciPy": lambda: None}
    if compiled() is None:
        del solvers["compiled"]
    found = {}
    for n, (name, solver) in product(BLOCKS, solvers.items()):
        contenders = {f"{n}x{n} blocks, {name}, K = {k}": partial(timed, n, k, solver) for k in MEMBERS}
        found[f"{n} {name}"] = in_turn(contenders, unit="ms", peer=next(iter(contenders)), rounds=rounds)
    return found


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        return 1e3 * seconds(work, device)
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def steps(model: nn.Module, plain: Batch, rounds: int, device: torch.device) -> Figures:
    """Measure training steps with both methods, in ms."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loss_function = MultiMixLoss()
    mixed = apply_mix(plain.images, plain.labels, plain.plan.mix, num_classes=1000)

    def step(forward: Callable[[], tuple[Tensor, Any]]) -> float:
        def whole() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits, targets = forward()
            optimizer.zero_grad(set_to_none=True)
            loss_function(logits, targets).backward()
            optimizer.step()

        return milliseconds(whole, device)

    contenders = {"step on mixed images": partial(step, lambda: (model(mixed.images), mixed.targets))}
    for layer in LAYERS:
        mixing = ManifoldMix(model, layer)
        contenders[f"step, ManifoldMix at {layer}"] = partial(step, partial(mixing, plain))
    contenders["PuzzleMix: saliency pass"] = partial(milliseconds, partial(PuzzleMix(model)._saliency, plain), device)
    for n in BLOCKS:
        puzzle = PuzzleMix(model, blocks=n)
        contenders[f"PuzzleMix, {n}x{n} blocks"] = partial(milliseconds, partial(puzzle, plain), device)
    moving = PuzzleMix(model, blocks=16, transport=True)
    contenders["PuzzleMix, 16x16 blocks, transport"] = partial(milliseconds, partial(moving, plain), device)
    return in_turn(contenders, unit="ms", peer="step on mixed images", rounds=rounds)


def main() -> None:
    args = parser(__doc__, shards=True, device="cpu", batch_size=16, k=5, size=224).parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    folder, _ = chosen_shards(args.shards)
    transform = TrainTransform(size=args.size)
    options = {"shards": folder, "batch_size": args.batch_size, "transform": transform, "device": device}
    with open_backend("torch", k=args.k, expand=False, channels_last=True, **options) as loader:
        plain = next(iter(loader))
    # masks cost the same for every network; 64 pairs take the place of few
    rows = np.resize(np.arange(len(plain.images)), 64)
    many = plain.__replace__(images=plain.images[rows], labels=plain.labels[rows])
    cuts = masks(make_network("plain", 1000).to(device), many, args.rounds)
    print("masks of 64 pairs, ms of CPU time")
    for figures in cuts.values():
        print(figures.table())
    results: dict[str, Any] = {"masks": {n: figures.summary() for n, figures in cuts.items()}}
    if find_spec("torchvision") is None:
        print("steps: missing: torchvision is not installed; pip install 'multimix-pipe[bench]'")
    else:
        network: Any = make_network("torchvision.models:resnet18", 1000).to(device)
        taken = steps(network.to(memory_format=torch.channels_last), plain, args.rounds, device)
        print(f"\nsteps: B = {args.batch_size}, K = {args.k}, {args.size}x{args.size}, {device}\n{taken.table()}")
        results["steps"] = taken.summary()
    report(__doc__, results, args.json)


if __name__ == "__main__":
    main()
