"""How many pairs a second does the pipeline hand out on a GPU, with K = 5 and without mixing, next to DALI's plain pipeline?

    python bench/gpu_rates_dali.py --device cuda [--shards FOLDER]

The target is a ratio of 0.97 for K = 5 against no mixing. DALI's plain pipeline reads the same tars with `readers.webdataset`,
decodes a random window, resizes, mirrors and normalises, as NVIDIA's classification examples do, and mixes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from data import add_shards, chosen_shards, repeated
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from multimix_pipe import MultiMix, TrainTransform, open_loader
from multimix_pipe.benchmark.harness import forever, in_turn, parser, rate, report
from multimix_pipe.config import IMAGENET_MEAN, IMAGENET_STD, usable_cores
from multimix_pipe.dali import class_id

NO_MIXING = "multimix_pipe dali, no mixing"


@pipeline_def
def classification(shards: list[str], gpu: bool, size: int, half: bool) -> Any:
    """DALI's own reader and no mixing: float images (C, H, W) and class ids."""
    encoded, cls = fn.readers.webdataset(
        paths=shards, ext=["jpg;jpeg;png;webp", "cls"], random_shuffle=True, initial_fill=1024, name="reader"
    )
    images = fn.decoders.image_random_crop(
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        random_area=[0.08, 1.0],
        random_aspect_ratio=[3 / 4, 4 / 3],
    )
    images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    images = fn.crop_mirror_normalize(
        images,
        mirror=fn.random.coin_flip(),
        mean=[255 * value for value in IMAGENET_MEAN],
        std=[255 * value for value in IMAGENET_STD],
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="CHW",
    )
    labels = class_id(cls)
    return images, labels.gpu() if gpu else labels


def main() -> None:
    arguments = parser(__doc__)
    add_shards(arguments)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--batch-size", type=int, default=256)
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments.add_argument("--repeat", type=int, default=128, help="times that the shards are read an epoch")
    arguments.add_argument("--steps", type=int, default=50, help="batches a round")
    arguments.add_argument("--threads", type=int, default=None, help="default: all cores")
    arguments.add_argument("--torch", action="store_true", help="the torch backend too")
    arguments.add_argument(
        "--kernel", action="store_true", help="the DALI backend with the Triton kernel behind it too"
    )
    args = arguments.parse_args()
    folder, num_classes = chosen_shards(args.shards)
    shards, device = repeated(folder, args.repeat), torch.device(args.device)
    threads, prefetch = args.threads or usable_cores(), 2
    contenders: dict[str, Callable[[], float]] = {}
    for kind in ["dali", *["dali, Triton"] * args.kernel, *["torch"] * args.torch]:
        for mix, name in ((None, "no mixing"), (MultiMix(k=5), "K=5")):
            loader = open_loader(
                shards,
                batch_size=args.batch_size,
                num_classes=num_classes,
                mix=mix,
                transform=TrainTransform(size=args.size),
                backend="torch" if kind == "torch" else "dali",
                device=args.device,
                dtype=args.dtype,
                last_batch="wrap",
                num_threads=threads,
                prefetch=prefetch,
            )
            if kind == "dali, Triton":
                from mix_in_loader_dali import with_kernel

                loader = with_kernel(loader)
            contenders[f"multimix_pipe {kind}, {name}"] = rate(
                forever(loader), args.batch_size, args.steps, ahead=prefetch + 2, device=device
            )
    pipeline = classification(
        *(shards, device.type == "cuda", args.size, args.dtype == "float16"),
        batch_size=args.batch_size,
        num_threads=threads,
        device_id=device.index or 0 if device.type == "cuda" else None,
        prefetch_queue_depth=prefetch + 1,
    )
    plain = DALIGenericIterator(pipeline, ["images", "labels"], reader_name="reader", auto_reset=True)
    contenders["DALI's classification pipeline"] = rate(
        forever(plain), args.batch_size, args.steps, ahead=prefetch + 2, device=device
    )
    figures = in_turn(contenders, unit="images/s", peer=NO_MIXING, rounds=args.rounds)
    print(f"B = {args.batch_size}, {args.size}x{args.size} {args.dtype}, {device}, {args.steps} batches a round")
    print(figures.table())
    settings = {"batch_size": args.batch_size, "size": args.size, "dtype": args.dtype, "device": str(device)}
    report(__doc__.splitlines()[0], {**settings, "threads": threads, "rate": figures.summary()}, args.json)


if __name__ == "__main__":
    main()
