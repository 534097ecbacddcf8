"""multimix-pipe preview: draw pairs of images and the K interpolations between them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from multimix_pipe.cli.arguments import NO_PROGRESS, add_shards, counted
from multimix_pipe.config import Backend, TrainTransform
from multimix_pipe.mixing import Field, MultiMix, Sampling


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `preview`."""
    parser = subparsers.add_parser(
        "preview",
        help="draw pairs of images and the K interpolations between them",
        description="Draw what a model gets: one row per pair, from x (left) to x' (right), with the weight of x under each "
        "image. The images come from the loader itself, cropped and flipped as in training.",
    )
    add_shards(parser)
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="picture to write, e.g. grid.png")
    parser.add_argument("--pairs", type=int, default=6, metavar="N", help="number of pairs; default: %(default)s")
    parser.add_argument("--k", type=int, default=5, help="interpolations per pair; default: %(default)s")
    parser.add_argument(
        "--alpha", type=float, default=1.0, help="draw weights from Beta(alpha, alpha); default: %(default)s"
    )
    parser.add_argument(
        "--method",
        choices=(*MultiMix.methods(), "all"),
        default="mixup",
        help="how images are combined; all: one pair by each method; default: %(default)s",
    )
    parser.add_argument(
        "--sampling", choices=get_args(Sampling), default="iid", help="how weights are drawn; default: %(default)s"
    )
    parser.add_argument("--size", type=int, default=160, metavar="PIXELS", help="image size; default: %(default)s")
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(0.08, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of the crop's share of the image area; default: 0.08 1.0, as in TrainTransform",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws; default: %(default)s")
    parser.add_argument(
        "--backend", choices=get_args(Backend), default="auto", help="what decodes and mixes; default: %(default)s"
    )
    parser.add_argument("--quiet", action="store_true", help=NO_PROGRESS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Draw the first pairs of epoch 0."""
    methods = MultiMix.methods() if args.method == "all" else (args.method,)
    mixes = [MultiMix(k=args.k, alpha=args.alpha, sampling=args.sampling, method=method) for method in methods]
    pairs = args.pairs if len(mixes) == 1 else 1
    write_preview(
        args.source,
        Path(args.out),
        pairs=pairs,
        mix=mixes,
        transform=TrainTransform(size=args.size, scale=tuple(args.scale)),
        seed=args.seed,
        backend=args.backend,
        label=args.label,
        cache_dir=args.cache_dir,
        progress=not args.quiet,
    )
    weights = f"{args.sampling} weights from Beta({args.alpha:g}, {args.alpha:g})"
    shown = counted(pairs, "pair") + (f" by each of {', '.join(methods)}" if len(mixes) > 1 else "")
    print(f"wrote {args.out}: {shown}, K = {args.k}, {weights}")
    return 0


def write_preview(
    source: list[str],
    out: Path,
    *,
    pairs: int,
    mix: MultiMix | Sequence[MultiMix],
    transform: TrainTransform,
    seed: int,
    backend: Backend,
    label: str = "cls",
    cache_dir: str | None = None,
    progress: bool = True,
) -> None:
    """Draw the loader's first `pairs` pairs and write the picture to `out`. Several `mix` are drawn one below the other."""
    from multimix_pipe.cli.classes import class_names
    from multimix_pipe.cli.picture import Row, draw_grid, save_picture, to_pixels
    from multimix_pipe.config import check_int
    from multimix_pipe.loader import open_loader
    from multimix_pipe.shards.index import open_index

    check_int("--pairs", pairs, 1, 1000)
    names = class_names(open_index(source, label=label, cache_dir=cache_dir, progress=progress))
    mixes = [mix] if isinstance(mix, MultiMix) else mix
    rows = []
    for settings in mixes:
        with open_loader(
            source,
            batch_size=max(2, pairs),  # a single image would have no partner
            num_classes=len(names),
            mix=settings,
            transform=transform,
            backend=backend,
            device="cpu",
            seed=seed,
            label=label,
            cache_dir=cache_dir,
            on_bad_sample="replace",
        ) as loader:
            batch = next(iter(loader))
        shape = (max(2, pairs), settings.k, *transform.height_width, 3)
        tiles = to_pixels(batch.images.numpy(), transform).reshape(shape)
        plan, labels = batch.plan.mix, batch.labels.numpy()
        fields, others = plan.weights(transform.height_width), labels[plan.partner]
        for b in range(pairs):
            constant = plan.field[b] == Field.CONSTANT
            method = str(plan.method[b]) if len(mixes) > 1 else ""
            row = Row(
                tiles[b], plan.lam[b], names[labels[b]], names[others[b]], None if constant else fields[b], method
            )
            rows.append(row)
    alpha = mixes[0].alpha
    title = f"K = {mixes[0].k} interpolations per pair, {mixes[0].sampling} weights from Beta({alpha:g}, {alpha:g})"
    save_picture(draw_grid(rows, title), out)
