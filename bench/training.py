"""Does the loader keep up with training? Training steps on this loader against steps on one batch that stays on the device.

    python bench/training.py [--shards FOLDER] [--k 5]
    python bench/training.py --device cuda --network torchvision.models:resnet50 --batch-size 128 [--shards FOLDER]

Both use the same model, rows and mixing, so a loader without any cost has the ratio 1. --k 0 trains without mixing. A round is
--steps training steps after a warm-up; --repeat is how often an epoch reads the shards. --network is "plain", a convolutional
network whose --width sets the cost of a step, or "module:function" of a library. On a GPU, training uses bfloat16 autocast and
channels_last.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

from data import chosen_shards, open_backend, repeated
from harness import forever, in_turn, parser, rate, report
from multimix_pipe import MultiMixLoss, TrainTransform
from multimix_pipe.shards.cores import usable_cores
from race.contenders import CONTENDERS
from race.setting import Setting

RESIDENT = "tensors that lie ready"


def make_network(name: str, num_classes: int, width: int = 8) -> nn.Module:
    """Build the network `name`: "plain", or "module:function", which is called with num_classes=."""
    if name != "plain":
        module, _, function = name.partition(":")
        network: nn.Module = getattr(import_module(module), function)(num_classes=num_classes)
        return network
    layers: list[nn.Module] = []
    for inner, outer in ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, num_classes))


def training(network: nn.Module, batches: Iterable[Any], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Make a training step on each batch, endlessly."""
    loss_function = MultiMixLoss()
    for images, targets in forever(batches):
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.is_cuda):
            logits = network(images)
        optimizer.zero_grad(set_to_none=True)
        loss_function(logits, targets).backward()
        optimizer.step()
        yield


def main() -> None:
    args = parser(
        __doc__, shards=True, device="cpu", network="plain", width=8, size=224, batch_size=64, k=5, steps=20, repeat=16
    ).parse_args()
    folder, num_classes = chosen_shards(args.shards)
    device, shards = torch.device(args.device), repeated(folder, args.repeat)
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    options: dict[str, Any] = {"shards": shards, "batch_size": args.batch_size, "num_classes": num_classes}
    options |= {"device": args.device, "transform": TrainTransform(size=args.size), "channels_last": on_gpu}
    options |= {"k": args.k or None, "dtype": "bfloat16" if on_gpu else "float32"}
    loaders = {backend: open_backend(backend, **options) for backend in ("dali", "torch")}
    if on_gpu:
        loaders["dali, decode=exact"] = open_backend("dali", decode="exact", **options)
    first: Any = [next(iter(loader)) for loader in loaders.values()][-1]
    # not before: torchvision would load an older nvJPEG than DALI's
    network: Any = make_network(args.network, num_classes, args.width).to(device)
    network = network.to(memory_format=torch.channels_last) if on_gpu else network
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    resident = (first.images.clone(memory_format=torch.preserve_format), first.targets.clone())
    del first
    sources: dict[str, Iterable[Any]] = {RESIDENT: [resident]}
    sources |= {f"multimix_pipe {backend}": loader for backend, loader in loaders.items()}
    if on_gpu:
        setting = Setting(
            shards, num_classes, args.batch_size, k=args.k or None, threads=usable_cores(), size=args.size,
            device=str(device), dtype="float32",
        )  # fmt: skip
        sources["DALI's classification pipeline"] = CONTENDERS["dali_reader"].load()(setting)
    contenders = {
        name: rate(training(network, batches, optimizer), 1, args.steps, device=device)
        for name, batches in sources.items()
    }
    figures = in_turn(contenders, unit="steps/s", peer=RESIDENT, rounds=args.rounds)
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise RuntimeError("training diverged: not all of the network's parameters are finite")
    rows = len(resident[0])
    rows_a_second = rows * statistics.median(figures.values[RESIDENT])
    print(
        f"{args.network}, B = {args.batch_size}, K = {args.k}, {device}: {rows} rows per step, {rows_a_second:.0f} rows/s"
    )
    print(figures.table())
    settings = {"network": args.network, "batch_size": args.batch_size, "k": args.k, "device": str(device)}
    report(__doc__, {**settings, "rows_a_step": rows, "rate": figures.summary()}, args.json)


if __name__ == "__main__":
    main()
