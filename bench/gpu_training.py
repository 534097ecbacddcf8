"""Does the loader keep a ResNet-50 fed? Training steps fed by it against steps fed by one batch that stays on the device.

    python bench/gpu_training.py --device cuda [--shards FOLDER]

bfloat16 under autocast, channels_last, SGD with momentum. The target is 0.97, with K = 5 and without mixing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import Any

import torch
from data import add_shards, chosen_shards, repeated
from resnet import resnet50
from torch import nn

from multimix_pipe import Loader, MultiMix, MultiMixLoss, TrainTransform, open_loader
from multimix_pipe.benchmark.harness import in_turn, parser, report, seconds

RESIDENT = "one resident batch"
PREFETCH = 2


def forever(batches: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from batches


class Trainer:
    """One model, trained on by all contenders in turn."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._device = device
        self._model: nn.Module = resnet50(num_classes).to(device, memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3, momentum=0.9)
        self._loss = MultiMixLoss()
        self.last_loss = torch.zeros(())

    def train(self, batches: Iterable[Any]) -> None:
        for images, targets in batches:
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._device.type == "cuda"):
                logits = self._model(images)
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(logits, targets)
            loss.backward()
            self._optimizer.step()
            self.last_loss = loss.detach()

    def pace(self, batches: Iterable[Any], steps: int) -> Callable[[], float]:
        """Steps a second, from a pipeline in full run: what lay ready is taken before."""
        iterator = forever(batches)

        def measure() -> float:
            self.train(islice(iterator, PREFETCH + 3 if self._device.type == "cuda" else 1))
            return steps / seconds(lambda: self.train(islice(iterator, steps)), self._device)

        return measure


def open_(shards: list[str], args: argparse.Namespace, mix: MultiMix | None, num_classes: int) -> Loader:
    return open_loader(
        shards,
        batch_size=args.rows // (5 if mix else 1),
        num_classes=num_classes,
        mix=mix,
        transform=TrainTransform(size=args.size),
        backend=args.backend,
        device=args.device,
        dtype="bfloat16" if args.device != "cpu" else "float32",  # CPUs without bfloat16 take minutes a step
        channels_last=True,
        prefetch=PREFETCH,
    )


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--rows", type=int, default=640, help="of a model batch: B * K, and B without mixing")
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--steps", type=int, default=10, help="training steps a round")
    arguments.add_argument("--repeat", type=int, default=64, help="times that the shards are read an epoch")
    arguments.add_argument("--backend", choices=("dali", "torch"), default="dali")
    arguments.add_argument(
        "--kernel", action="store_true", help="the DALI backend with the Triton kernel behind it too"
    )
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards, device = repeated(folder, args.repeat), torch.device(args.device)
    torch.backends.cudnn.benchmark = True
    trainer = Trainer(max(num_classes, 1000), device)
    results: dict[str, Any] = {"rows": args.rows, "size": args.size, "device": str(device), "backend": args.backend}
    for mix, name in ((MultiMix(k=5), "K=5"), (None, "no mixing")):
        loaders = {f"multimix_pipe {args.backend}": open_(shards, args, mix, max(num_classes, 1000))}
        if args.kernel:
            from mix_in_loader_dali import with_kernel

            loaders["multimix_pipe dali, Triton"] = with_kernel(open_(shards, args, mix, max(num_classes, 1000)))
        images, targets = next(iter(loaders[f"multimix_pipe {args.backend}"]))
        resident = (images.clone(memory_format=torch.preserve_format), targets.clone())
        del images, targets
        contenders = {RESIDENT: trainer.pace(repeat(resident), args.steps)}
        contenders |= {kind: trainer.pace(loader, args.steps) for kind, loader in loaders.items()}
        figures = in_turn(contenders, unit="steps/s", peer=RESIDENT, rounds=args.rounds)
        for loader in loaders.values():
            loader.close()
        rows_a_second = len(resident[0]) * statistics.median(figures.values[RESIDENT])
        print(f"{name}: {len(resident[0])} rows a step, {rows_a_second:.0f} rows/s from the resident batch")
        print(figures.table(), flush=True)
        assert trainer.last_loss.isfinite()
        results[name] = {"rows_a_step": len(resident[0]), "pace": figures.summary()}
        if device.type == "cuda":
            results["peak_memory_of_torch"] = torch.cuda.max_memory_allocated(device)
        report(__doc__.splitlines()[0], results, args.json)  # now, lest what follows runs out of time


if __name__ == "__main__":
    main()
