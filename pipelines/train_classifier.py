"""Train an image classifier on WebDataset shards with multi-mix, in a plain PyTorch loop for one or many processes.

    python pipelines/train_classifier.py "train-{000000..001281}.tar" --val "val-{000000..000049}.tar" \
        --num-classes 1000 --model torchvision.models:resnet50
    torchrun --nproc-per-node 8 pipelines/train_classifier.py ... --resume out/checkpoint.pt

`--batch-size` is the number of pairs per process and step; the model gets K rows per pair. You can interrupt training at any
step: `--resume` continues from the last checkpoint with exactly the samples, crops and mixing weights that remained, even with a
different number of processes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from multimix_pipe import EvalTransform, Loader, MultiMix, MultiMixLoss, TrainTransform, mixed_accuracy, open_loader


def small_resnet(num_classes: int) -> nn.Module:
    """Return a small residual network for small images, so that this recipe runs without a model library."""

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()),
                *(nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer)),
            )
            self.skip = nn.Conv2d(inner, outer, 1, stride=2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.body(x) + self.skip(x))

    stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    blocks = [Block(32, 64), Block(64, 128), Block(128, 256)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, num_classes))


def make_model(name: str, num_classes: int) -> nn.Module:
    """Build the model `name`: "small", or "module:function", which is called with num_classes=."""
    if name == "small":
        return small_resnet(num_classes)
    module, _, function = name.partition(":")
    model: nn.Module = getattr(importlib.import_module(module), function)(num_classes=num_classes)
    return model


def evaluate(model: nn.Module, loader: Loader, device: torch.device) -> float:
    """Return the top-1 accuracy over all processes; each sample counts once."""
    model.eval()
    right = torch.zeros(2, device=device, dtype=torch.float64)
    with torch.inference_mode():
        for images, labels in loader:
            hits = (model(images).argmax(1) == labels).sum()
            right += torch.stack([hits.double(), torch.full_like(hits, len(labels)).double()])
    if dist.is_initialized():
        dist.all_reduce(right)
    return float(right[0] / right[1])


def save(path: Path, **parts: object) -> None:
    """Write a checkpoint atomically: an interrupt never leaves half a file."""
    temporary = path.with_suffix(".tmp")
    torch.save(parts, temporary)
    os.replace(temporary, path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", help="training shards: a path, glob, brace pattern or folder")
    parser.add_argument("--val", help="validation shards")
    parser.add_argument(
        "--num-classes", type=int, help="default: the number of names in classes.json beside the shards"
    )
    parser.add_argument("--model", default="small", help='"small" or module:function, e.g. torchvision.models:resnet50')
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument(
        "--batch-size", type=int, default=64, help="pairs per process and step; the model gets K rows per pair"
    )
    parser.add_argument("--k", type=int, default=5, help="interpolations per pair; 0 trains without mixing")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--sampling", default="iid", choices=["iid", "stratified"])
    parser.add_argument(
        "--size",
        type=int,
        default=224,
        help="size of training crops; evaluation resizes to 8/7 of it and crops the centre",
    )
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate for the rows of all processes")
    parser.add_argument("--weight-decay", type=float, default=5e-5)
    parser.add_argument("--backend", default="auto", choices=["auto", "dali", "torch"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--on-bad-sample", default="replace", choices=["raise", "replace"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--max-steps", type=int, default=None, help="stop after this many steps")
    parser.add_argument("--resume", type=Path, help="checkpoint of this recipe to continue from")
    parser.add_argument(
        "--allow-changes", action="store_true", help="resume although the loader's settings differ, e.g. the batch size"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() and args.device != "cpu" else "gloo")
    torch.manual_seed(args.seed)
    common = {
        "backend": args.backend,
        "device": args.device,
        "seed": args.seed,
        "on_bad_sample": args.on_bad_sample,
    }
    mix = MultiMix(k=args.k, alpha=args.alpha, sampling=args.sampling) if args.k else None
    train = open_loader(
        args.train,
        batch_size=args.batch_size,
        num_classes=args.num_classes,
        mix=mix,
        transform=TrainTransform(size=args.size),
        **common,
    )
    val = None
    if args.val:
        val = open_loader(
            args.val,
            batch_size=2 * args.batch_size,
            num_classes=train.num_classes,
            classes=train.classes,
            transform=EvalTransform(size=args.size),
            **common,
        )
    device, leads = train.device, not dist.is_initialized() or dist.get_rank() == 0
    if device.type == "cuda":
        torch.cuda.set_device(device)
    args.out.mkdir(parents=True, exist_ok=True)

    model = make_model(args.model, train.num_classes).to(device)
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    total = args.epochs * len(train)
    warmup = max(1, total // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total)))
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": train}
    first_epoch = 0
    if args.resume:
        checkpoint = torch.load(args.resume, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name], **({"strict": not args.allow_changes} if part is train else {}))
        first_epoch = checkpoint["loader"]["epoch"]

    train.check_ranks()  # all processes have the same data, settings and position
    loss_function = MultiMixLoss()
    amp = torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
    steps, stop, loss = 0, False, None
    for epoch in range(first_epoch, args.epochs):
        train.set_epoch(epoch)
        wrapped.train()
        for images, targets in train:
            with amp:
                logits = wrapped(images)
            loss = loss_function(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            steps += 1
            stop = steps == args.max_steps
            if leads and (stop or steps % args.checkpoint_every == 0):
                save(args.out / "checkpoint.pt", **{name: part.state_dict() for name, part in parts.items()})
            if leads and (stop or steps % 50 == 1):
                fit = float(mixed_accuracy(logits, targets))
                print(f"epoch {epoch} step {steps} loss {loss.item():.4f} mixed accuracy {fit:.3f}", flush=True)
            if stop:
                break
        if stop:
            break
        if leads:
            save(args.out / "checkpoint.pt", **{name: part.state_dict() for name, part in parts.items()})
        accuracy = evaluate(model, val, device) if val is not None else None
        if leads:
            with (args.out / "log.jsonl").open("a") as log:
                last = None if loss is None else loss.item()
                log.write(json.dumps({"epoch": epoch, "loss": last, "accuracy": accuracy}) + "\n")
            print(f"epoch {epoch} done, validation accuracy {accuracy}", flush=True)
    train.close()
    for kind, loader in (("training", train), ("validation", val)):
        if leads and loader is not None and loader.bad_samples:
            print(f"bad {kind} samples that were replaced ({len(loader.bad_samples)}): {loader.bad_samples}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
