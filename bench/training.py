"""Does the loader keep a training step fed? Steps with this loader against steps on tensors that lie ready.

    python bench/training.py [--shards FOLDER] [--device cuda]

The same model, rows and mixing in both: a loader that costs nothing has the ratio 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from data import chosen_shards, repeated
from torch import nn

from multimix_pipe import MultiMix, MultiMixLoss, open_loader
from multimix_pipe.benchmark.harness import in_turn, parser, report, seconds


def conv_net(num_classes: int, width: int) -> nn.Module:
    """A plain convolutional net; `width` sets what a step costs."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, num_classes))


def steps_a_second(model: nn.Module, batches: Callable[[], Iterable[Any]], device: torch.device) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_function = MultiMixLoss()

    def train(some: Iterator[Any]) -> int:
        count = 0
        for images, targets in some:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(images)
            optimizer.zero_grad(set_to_none=True)
            loss_function(logits, targets).backward()
            optimizer.step()
            count += 1
        return count

    iterator = iter(batches())
    train(islice(iterator, 3))  # the first ones ran ahead, as many as will run ahead at the end
    counts: list[int] = []
    duration = seconds(lambda: counts.append(train(iterator)), device)
    return counts[0] / duration


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--shards", type=Path, help="a folder of shards with classes.json; default: generated photos"
    )
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--repeat", type=int, default=4, help="times that the shards are read an epoch")
    arguments.add_argument("--k", type=int, default=5)
    arguments.add_argument("--width", type=int, default=None, help="of the net; default 64 on a GPU, 8 on a CPU")
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    device = torch.device(args.device)
    width = args.width or (8 if device.type == "cpu" else 64)
    shards = repeated(folder, args.repeat)
    model = conv_net(num_classes, width).to(device)

    loaders = {
        backend: open_loader(
            shards,
            batch_size=args.batch_size,
            num_classes=num_classes,
            mix=MultiMix(k=args.k),
            backend=backend,
            device=args.device,
            last_batch="drop",
        )
        for backend in ("dali", "torch")
    }
    steps = len(loaders["torch"])
    images, targets = next(iter(loaders["torch"]))
    ready = (images.clone(), targets.clone())
    contenders: dict[str, Callable[[], float]] = {
        "tensors that lie ready": lambda: steps_a_second(model, lambda: repeat(ready, steps), device)
    }
    for backend, loader in loaders.items():
        contenders[f"multimix_pipe {backend}"] = lambda loader=loader: steps_a_second(model, lambda: loader, device)
    figures = in_turn(contenders, unit="steps/s", peer="tensors that lie ready", rounds=args.rounds)
    print(f"B = {args.batch_size}, K = {args.k}, net of width {width}, {device}")
    print(figures.table())
    report(__doc__.splitlines()[0], {"batch_size": args.batch_size, "k": args.k, "rate": figures.summary()}, args.json)


if __name__ == "__main__":
    main()
