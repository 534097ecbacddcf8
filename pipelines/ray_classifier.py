"""Train with Ray Train on several workers; a worker that dies costs the steps since the last checkpoint.

python pipelines/ray_classifier.py /shared/shards/train --workers 2 --out /shared/runs
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from multimix_pipe import MultiMix, MultiMixLoss, TrainTransform, open_loader


def make_model(num_classes: int) -> nn.Module:
    """Return a small network. Put yours here."""
    features = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(features, nn.Linear(512, num_classes))


def report(loss: float, parts: dict[str, Any]) -> None:
    """Report the loss with a checkpoint, which worker 0 writes."""
    if ray.train.get_context().get_world_rank():
        ray.train.report({"loss": loss})
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({name: part.state_dict() for name, part in parts.items()}, Path(folder) / "parts.pt")
        ray.train.report({"loss": loss}, checkpoint=Checkpoint.from_directory(folder))


def train_worker(settings: dict[str, Any]) -> None:
    """Train in one worker. Ray has set up torch.distributed, from which the loader takes its rank."""
    torch.manual_seed(0)
    device = get_device()
    train = open_loader(
        settings["train"],
        batch_size=settings["batch_size"],
        num_classes=settings["num_classes"],
        mix=MultiMix(k=2),
        transform=TrainTransform(size=32),
        device=device,
    )
    wrapped = prepare_model(make_model(train.num_classes))
    model = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer, "loader": train}
    if checkpoint := ray.train.get_checkpoint():  # after a crash
        with checkpoint.as_directory() as folder:
            for name, state in torch.load(Path(folder) / "parts.pt", map_location=device, weights_only=True).items():
                parts[name].load_state_dict(state)
    train.check_ranks()  # all workers have the same data, settings and position
    loss_function, steps = MultiMixLoss(), 0
    for _ in range(train.state_dict()["epoch"], settings["epochs"]):
        for images, targets in train:
            loss = loss_function(wrapped(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if steps % settings["checkpoint_every"] == 0 or train.steps_done == 0:  # 0: the epoch is over
                report(loss.item(), parts)
    train.close()


def fit(settings: dict[str, Any]) -> Any:
    """Run the training; a crash restarts the workers from the last checkpoint, up to three times."""
    run = RunConfig(storage_path=settings["out"], failure_config=FailureConfig(max_failures=3))
    scaling = ScalingConfig(num_workers=settings["workers"], use_gpu=settings["gpu"])
    return TorchTrainer(train_worker, train_loop_config=settings, scaling_config=scaling, run_config=run).fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", help="training shards: a path that each worker can read, or a URL")
    parser.add_argument("--num-classes", type=int, help="default: as many as classes.json has names")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per worker and step")
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--out", required=True, help="path or URL of storage that all workers can write to")
    settings = vars(parser.parse_args())
    for name in ("train", "out"):  # workers run in other folders
        settings[name] = settings[name] if "://" in settings[name] else str(Path(settings[name]).absolute())
    result = fit(settings)
    print(f"loss {result.metrics['loss']:.4f}")


if __name__ == "__main__":
    main()
