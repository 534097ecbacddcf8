"""Train with Accelerate: `prepare` gets the model and the optimizer, `register_for_checkpointing` gets the loader.

accelerate launch pipelines/accelerate_classifier.py shards/train --val shards/val
accelerate launch pipelines/accelerate_classifier.py ... --resume out/checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from train_classifier import make_model

from multimix_pipe import EvalTransform, Loader, MultiMix, MultiMixLoss, TrainTransform, open_loader


def evaluate(accelerator: Accelerator, model: nn.Module, loader: Loader) -> tuple[float, int]:
    """Return the accuracy over all processes and the number of samples; each sample counts once.

    It gathers objects, and once: processes may have unequal last batches, and unequal numbers of batches.
    """
    model.eval()
    hits: list[bool] = []
    with torch.inference_mode():
        for images, labels in loader:
            hits += (model(images).argmax(1) == labels).tolist()
    everyone = accelerator.gather_for_metrics(hits, use_gather_object=True)
    return sum(everyone) / len(everyone), len(everyone)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", help="training shards")
    parser.add_argument("--val", required=True, help="validation shards")
    parser.add_argument("--num-classes", type=int, help="default: as many as classes.json has names")
    parser.add_argument("--model", default="small", help='"small" or module:function')
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per process and step")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--max-steps", type=int, help="stop after this many steps of this run")
    parser.add_argument("--resume", type=Path, help="checkpoint folder to continue from")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    accelerator = Accelerator(cpu=args.cpu)  # before the loader, so that the process group exists
    torch.manual_seed(0)
    common = {"batch_size": args.batch_size, "device": accelerator.device}
    mix, augment = MultiMix(k=2), TrainTransform(size=args.size)
    train = open_loader(args.train, num_classes=args.num_classes, mix=mix, transform=augment, **common)
    names = {"num_classes": train.num_classes, "classes": train.classes}
    val = open_loader(args.val, transform=EvalTransform(size=args.size), **names, **common)
    model = make_model(args.model, train.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    wrapped, optimizer = accelerator.prepare(model, optimizer)  # not the loader: it knows its process and device
    accelerator.register_for_checkpointing(train)
    if args.resume:
        accelerator.load_state(args.resume)
    train.check_ranks()  # all processes have the same data, settings and position
    loss_function, steps = MultiMixLoss(), 0
    for epoch in range(train.state_dict()["epoch"], args.epochs):
        wrapped.train()
        for images, targets in train:
            with accelerator.autocast():
                loss = loss_function(wrapped(images), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps % args.checkpoint_every == 0 or steps == args.max_steps:
                accelerator.save_state(args.out / "checkpoint")
            if steps == args.max_steps:
                break
        if steps == args.max_steps:
            break
        # the bare model, because DDP may communicate in a forward pass, and numbers of batches differ
        accuracy, samples = evaluate(accelerator, accelerator.unwrap_model(wrapped), val)
        accelerator.print(f"epoch {epoch} accuracy {accuracy:.4f} of {samples} samples", flush=True)
        accelerator.save_state(args.out / "checkpoint")
    train.close()
    val.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
