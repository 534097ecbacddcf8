"""How many images a second come out, mixed? This loader's backends against what people use today.

    python bench/loading_dali.py [--shards FOLDER] [--device cuda]

All contenders decode JPEG, take a RandomResizedCrop of 224 with a flip, normalise to float32, and, where the name says K=5, mix
each pair five ways. A figure counts decoded images; at K=5 the model sees five times as many rows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from data import chosen_shards, repeated
from harness import in_turn, parser, report, seconds
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from PIL import Image

from multimix_pipe import MultiMix, mix_batch, open_loader
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD
from multimix_pipe.dali import class_id, multi_mix

MIX = MultiMix(k=5)
MEAN, STD = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)


class DataLoaderWithPillow:
    """webdataset's reader, Pillow, torch's DataLoader with worker processes, `mix_batch` in the main process."""

    def __init__(
        self, shards: list[str], batch_size: int, num_classes: int, workers: int, device: str, mixes: bool
    ) -> None:
        dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).to_tuple(
            "jpg;jpeg;png;webp", "cls"
        )
        self._loader = torch.utils.data.DataLoader(
            dataset.map(_decode).batched(batch_size), batch_size=None, num_workers=workers, persistent_workers=True
        )
        self._num_classes, self._device, self._mixes = num_classes, device, mixes

    def __iter__(self) -> Iterator[Any]:
        for step, (images, labels) in enumerate(self._loader):
            images, labels = images.to(self._device), labels.to(self._device)
            yield (
                mix_batch(images, labels, MIX, num_classes=self._num_classes, step=step)
                if self._mixes
                else (images, labels)
            )


def _decode(sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, int]:
    image = Image.open(io.BytesIO(sample[0])).convert("RGB")
    draw = np.random.default_rng(len(sample[0]))
    side = np.sqrt(image.width * image.height * draw.uniform(0.08, 1.0))
    width, height = min(image.width, round(side)), min(image.height, round(side))
    x, y = draw.integers(image.width - width + 1), draw.integers(image.height - height + 1)
    image = image.crop((x, y, x + width, y + height)).resize((224, 224), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)[..., :: draw.choice([-1, 1])])), int(
        sample[1]
    )


@pipeline_def
def dali_pipeline(shards: list[str], num_classes: int, mixes: bool, gpu: bool) -> Any:
    encoded, cls = fn.readers.webdataset(
        paths=shards, ext=["jpg;jpeg;png;webp", "cls"], random_shuffle=True, initial_fill=256, name="reader"
    )
    images = fn.decoders.image_random_crop(encoded, device="mixed" if gpu else "cpu", random_area=[0.08, 1.0])
    images = fn.resize(images, size=[224, 224], antialias=True)
    images = fn.crop_mirror_normalize(
        images,
        mirror=fn.random.coin_flip(),
        mean=(255 * MEAN).tolist(),
        std=(255 * STD).tolist(),
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    labels = class_id(cls)
    labels = labels.gpu() if gpu else labels
    return multi_mix(images, labels, num_classes=num_classes) if mixes else (images, labels)


def rate(batches: Iterable[Any], batch_size: int, device: torch.device) -> Callable[[], float]:
    """Images a second over an epoch, from its fourth batch on: what ran ahead before is as much as runs ahead at its end."""

    def epoch() -> float:
        iterator = iter(batches)
        for _ in islice(iterator, 3):
            pass
        count = 0

        def rest() -> None:
            nonlocal count
            for _ in iterator:
                count += 1

        duration = seconds(rest, device)
        return count * batch_size / duration

    return epoch


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--shards", type=Path, help="a folder of shards with classes.json; default: generated photos"
    )
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--repeat", type=int, default=4, help="times that the shards are read an epoch")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards = repeated(folder, args.repeat)
    device, gpu = torch.device(args.device), args.device != "cpu"
    contenders = {}
    for mix, suffix in ((None, "no mixing"), (MIX, "K=5")):
        for backend in ("dali", "torch"):
            loader = open_loader(
                shards,
                batch_size=args.batch_size,
                num_classes=num_classes,
                mix=mix,
                backend=backend,
                device=args.device,
                last_batch="drop",
                num_threads=args.threads,
            )
            contenders[f"multimix_pipe {backend}, {suffix}"] = rate(loader, args.batch_size, device)
        pipeline = dali_pipeline(
            *(shards, num_classes, mix is not None, gpu),
            batch_size=args.batch_size,
            num_threads=args.threads,
            device_id=0 if gpu else None,
        )
        iterator = DALIGenericIterator(pipeline, ["images", "targets"], reader_name="reader", auto_reset=True)
        contenders[f"DALI's reader and decoder, {suffix}"] = rate(iterator, args.batch_size, device)
        peer = DataLoaderWithPillow(shards, args.batch_size, num_classes, args.threads, args.device, mix is not None)
        contenders[f"DataLoader with Pillow, {suffix}"] = rate(peer, args.batch_size, device)
    figures = in_turn(contenders, unit="images/s", peer="DataLoader with Pillow, K=5", rounds=args.rounds)
    print(f"B = {args.batch_size}, {args.threads} threads, {device}, {len(loader) * args.batch_size} images an epoch")
    print(figures.table())
    report(__doc__.splitlines()[0], {"batch_size": args.batch_size, "rate": figures.summary()}, args.json)


if __name__ == "__main__":
    main()
