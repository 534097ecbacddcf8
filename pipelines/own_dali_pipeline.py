"""Multi-mix as one line in a DALI pipeline of your own, with DALI's own WebDataset reader.

    multimix-pipe verify shards/train   # as DALI may crash on a broken image
    python pipelines/own_dali_pipeline.py shards/train/*.tar --num-classes 10

`open_loader` adds a global shuffle, exact resume, equal numbers of steps in all processes, bad samples reported by name, and
the same batches without DALI. Here you keep your own reader and augmentations.
"""

from __future__ import annotations

import argparse
import sys

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from multimix_pipe import MultiMixLoss
from multimix_pipe.dali import class_id, multi_mix


@pipeline_def
def training(shards: list[str], num_classes: int, k: int, size: int, gpu: bool):
    encoded, cls = fn.readers.webdataset(
        paths=shards, ext=["jpg;jpeg;png;webp", "cls"], random_shuffle=True, initial_fill=4096, name="shards"
    )
    images = fn.decoders.image_random_crop(encoded, device="mixed" if gpu else "cpu", random_area=[0.08, 1.0])
    images = fn.resize(images, size=[size, size], antialias=True)
    images = fn.crop_mirror_normalize(
        images,
        mirror=fn.random.coin_flip(),
        mean=[0.485 * 255, 0.456 * 255, 0.406 * 255],
        std=[0.229 * 255, 0.224 * 255, 0.225 * 255],
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    labels = class_id(cls)
    return multi_mix(images, labels.gpu() if gpu else labels, num_classes=num_classes, k=k, alpha=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a tiny network for one epoch on a DALI pipeline with multi-mix."
    )
    parser.add_argument("shards", nargs="+", help="tar files")
    parser.add_argument("--num-classes", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32, help="pairs per step; the model gets K rows per pair")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    pipeline = training(
        args.shards,
        *(args.num_classes, args.k, args.size, gpu),
        batch_size=args.batch_size,
        num_threads=4,
        device_id=0 if gpu else None,
        seed=0,
    )
    batches = DALIGenericIterator(
        pipeline, ["images", "targets"], reader_name="shards", last_batch_policy=LastBatchPolicy.DROP
    )

    net = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 32, 5, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)),
        *(torch.nn.Flatten(), torch.nn.Linear(32, args.num_classes)),
    ).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss_function = MultiMixLoss()
    for step, (batch,) in enumerate(batches):
        images, targets = batch["images"].flatten(0, 1), batch["targets"].flatten(0, 1)  # (B, K, ...) -> (B*K, ...)
        loss = loss_function(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: {tuple(images.shape)} images, loss {loss.item():.4f}")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        if "File mapping failed" in str(error):
            sys.exit("the shards must be tar files, such as shards/train/*.tar")
        if "Slice can't be placed out of bounds" in str(error):
            sys.exit("labels must lie in [0, --num-classes)")
        if "decoders" not in str(error):
            raise
        sys.exit("an image cannot be decoded, and DALI does not say which one: `multimix-pipe verify SHARDS` lists it")
