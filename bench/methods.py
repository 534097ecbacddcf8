"""What does each mixing method cost? Images per second of a loader with K = 5, by each method, relative to mixup.

    python bench/methods.py [--shards FOLDER] [--device cuda]

"switch" draws mixup or CutMix for each pair; "partners each" is mixup with another partner for each member, and "crops each" with
another crop. Measurements start with the second epoch, when each image has been decoded once. --images is the number of images
decoded per measurement, --only takes some of the settings.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

from data import an_epoch, chosen_shards
from harness import forever, in_turn, parser, rate, report
from multimix_pipe import MultiMix, TrainTransform, open_loader

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in MultiMix.methods()},
    "switch": {"method": {"mixup": 0.5, "cutmix": 0.5}},
    "partners each": {"partners": "each"},
    "crops each": {"crops": "each"},
    "crops each, no mixing": {"crops": "each", "prob": 0.0},
}


def main() -> None:
    arguments = parser(__doc__, shards=True, device="cpu", batch_size=64, k=5, size=224, images=1280)
    arguments.add_argument("--backends", nargs="+", choices=("dali", "torch"), default=["dali", "torch"])
    arguments.add_argument("--only", nargs="+", choices=SETTINGS, help="measure these and mixup; default: all")
    args = arguments.parse_args()
    settings = {name: SETTINGS[name] for name in ("mixup", *(args.only or SETTINGS))}
    folder, num_classes = chosen_shards(args.shards)
    contenders = {}
    for backend in args.backends:
        for name, options in settings.items():
            loader = open_loader(
                backend=backend,
                device=args.device,
                batch_size=args.batch_size,
                num_classes=max(num_classes, 1000),
                mix=MultiMix(k=args.k, **options),
                transform=TrainTransform(size=args.size),
                **an_epoch(folder, max(640, args.images)),
            )
            batches = forever(loader)
            for _ in islice(batches, len(loader)):  # the first epoch
                pass
            steps = max(1, args.images // args.batch_size)
            contenders[f"{backend}, {name}"] = rate(batches, args.batch_size, steps, device=torch.device(args.device))
    figures = in_turn(contenders, unit="images/s", peer=f"{args.backends[0]}, mixup", rounds=args.rounds)
    print(figures.table())
    to_mixup = {
        f"{backend}, {name}": figures.ratio(f"{backend}, {name}", f"{backend}, mixup")
        for backend in args.backends
        for name in settings
    }
    for name, ratio in to_mixup.items():
        print(f"{name}: {ratio:.3f} of mixup's rate")
    size = {"batch_size": args.batch_size, "k": args.k, "size": args.size, "device": args.device}
    report(__doc__, {**size, "rate": figures.summary(), "to_mixup": to_mixup}, args.json)


if __name__ == "__main__":
    main()
