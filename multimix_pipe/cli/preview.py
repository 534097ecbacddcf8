"""multimix-pipe preview: draw pairs of images and the K interpolations between them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from multimix_pipe.cli.arguments import NO_PROGRESS, add_shards, counted, data_options
from multimix_pipe.config import Backend, TrainTransform
from multimix_pipe.mixing import MultiMix, Sampling

if TYPE_CHECKING:
    from PIL import Image


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
    mix = MultiMix(k=args.k, alpha=args.alpha, sampling=args.sampling)
    write_preview(
        args.source,
        Path(args.out),
        pairs=args.pairs,
        mix=mix,
        transform=TrainTransform(size=args.size, scale=tuple(args.scale)),
        seed=args.seed,
        backend=args.backend,
        progress=not args.quiet,
        **data_options(args),
    )
    weights = f"{mix.sampling} weights from Beta({mix.alpha:g}, {mix.alpha:g})"
    print(f"wrote {args.out}: {counted(args.pairs, 'pair')}, K = {mix.k}, {weights}")
    return 0


def write_preview(
    source: list[str],
    out: Path,
    *,
    pairs: int,
    mix: MultiMix,
    transform: TrainTransform,
    seed: int,
    backend: Backend,
    progress: bool = True,
    **data: Any,
) -> None:
    """Draw the loader's first pairs and write the picture to `out`; `data` is what `data_options` gives."""
    from multimix_pipe.cli.classes import class_names
    from multimix_pipe.cli.picture import save_picture
    from multimix_pipe.config import check_int
    from multimix_pipe.shards.index import open_index

    check_int("--pairs", pairs, 1, 1000)
    names = class_names(open_index(source, progress=progress, keep_damaged=True, **data))
    data["classes"] = None if data.get("classes") is None else names
    save_picture(draw_pairs(source, pairs, names, mix, transform, seed=seed, backend=backend, **data), out)


def draw_pairs(
    source: list[str], pairs: int, names: Sequence[str], mix: MultiMix, transform: TrainTransform, **options: Any
) -> Image.Image:
    """Return a picture of the loader's first `pairs` pairs; `names` are those of the classes."""
    from multimix_pipe.cli.picture import Row, draw_grid, to_pixels
    from multimix_pipe.loader import open_loader

    count = max(2, pairs)  # a single image would have no partner
    loader = open_loader(
        source,
        batch_size=count,
        num_classes=len(names),
        mix=mix,
        transform=transform,
        device="cpu",
        on_bad_sample="replace",
        **options,
    )
    with loader:
        batch = next(iter(loader))
        tiles = to_pixels(batch.images.numpy(), transform).reshape(count, mix.k, *transform.height_width, 3)
        lam, labels = batch.plan.lam, batch.labels.numpy()
        others = labels[batch.plan.partner]
        rows = [Row(tiles[b], lam[b], names[labels[b]], names[others[b]]) for b in range(pairs)]
    title = f"K = {mix.k} interpolations per pair, {mix.sampling} weights from Beta({mix.alpha:g}, {mix.alpha:g})"
    return draw_grid(rows, title)
