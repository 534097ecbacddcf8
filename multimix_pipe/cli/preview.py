"""multimix-pipe preview: draw pairs of images and the K interpolations between them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.cli.arguments import add_backend, add_k, add_quiet, add_shards, data_options
from multimix_pipe.config import Backend, TrainTransform
from multimix_pipe.errors import counted
from multimix_pipe.mixing import Crops, Field, MultiMix, Sampling

if TYPE_CHECKING:
    from PIL import Image

    from multimix_pipe.batch import Batch
    from multimix_pipe.cli.picture import Row


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `preview`."""
    parser = subparsers.add_parser(
        "preview",
        help="draw pairs of images and the K interpolations between them",
        description="Draw what a model gets: one row per pair, x at the left, x' at the right, and between them the K "
        "interpolations with the weight of x under each. The images come from the loader itself, cropped and flipped as in "
        "training.",
    )
    add_shards(parser)
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="picture to write, e.g. grid.png")
    parser.add_argument("--pairs", type=int, metavar="N", help="number of pairs; default: 6, or 1 by each method")
    add_k(parser)
    parser.add_argument(
        "--alpha", type=float, default=1.0, help="draw weights from Beta(alpha, alpha); default: %(default)s"
    )
    parser.add_argument(
        "--method",
        choices=(*MultiMix.methods(), "all"),
        default="mixup",
        help="how images are combined; all: the same pairs by each method; default: %(default)s",
    )
    parser.add_argument(
        "--sampling", choices=get_args(Sampling), default="iid", help="how weights are drawn; default: %(default)s"
    )
    parser.add_argument(
        "--crops",
        choices=get_args(Crops),
        default="same",
        help="each: every interpolation shows crops of its own; default: %(default)s",
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
    add_backend(parser)
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Draw the first pairs of epoch 0."""
    methods = MultiMix.methods() if args.method == "all" else (args.method,)
    options = {"k": args.k, "alpha": args.alpha, "sampling": args.sampling, "crops": args.crops}
    mixes = [MultiMix(**options, method=method) for method in methods]
    pairs = args.pairs if args.pairs is not None else 6 if len(mixes) == 1 else 1
    write_preview(
        args.source,
        Path(args.out),
        pairs=pairs,
        mix=mixes,
        transform=TrainTransform(size=args.size, scale=tuple(args.scale)),
        seed=args.seed,
        backend=args.backend,
        progress=not args.quiet,
        **data_options(args),
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
    save_picture(draw_pairs(source, pairs, names, mix, transform, seed=seed, backend=backend, **data), out)


def draw_pairs(
    source: list[str],
    pairs: int,
    names: Sequence[str],
    mix: MultiMix | Sequence[MultiMix],
    transform: TrainTransform,
    **options: Any,
) -> Image.Image:
    """Return a picture of pairs in the loader's first batch, by one mixing after the other; `names` are those of the classes."""
    from multimix_pipe.cli.picture import draw_grid, to_pixels
    from multimix_pipe.loader import open_loader

    mixes = [mix] if isinstance(mix, MultiMix) else mix
    settings: dict[str, Any] = {"transform": transform, "num_classes": len(names), "device": "cpu", **options}
    settings |= {"batch_size": 3 * pairs, "on_bad_sample": "replace"}  # so many that no image need be in two pairs
    with open_loader(source, mix=mixes[0], expand=False, **settings) as unmixed:
        plain = to_pixels(next(iter(unmixed)).images.numpy(), transform)
    rows: list[Row] = []
    for one in mixes:
        with open_loader(source, mix=one, **settings) as loader:
            rows += _rows(next(iter(loader)), plain, pairs, names, transform, named=len(mixes) > 1)
    alpha = mixes[0].alpha
    title = f"K = {mixes[0].k} interpolations per pair, {mixes[0].sampling} weights from Beta({alpha:g}, {alpha:g})"
    return draw_grid(rows, title)


def _rows(
    batch: Batch, plain: NDArray[np.uint8], pairs: int, names: Sequence[str], transform: TrainTransform, *, named: bool
) -> list[Row]:
    """Return the lines of a batch's first pairs: the first crop of x, the members, the last crop of x'.

    plain: (B, H, W, 3), or (B*K, H, W, 3) with a crop for each member. named: whether each line tells its method.
    """
    from multimix_pipe.cli.classes import shown_labels
    from multimix_pipe.cli.picture import Row, to_pixels
    from multimix_pipe.plan import StepPlan

    assert isinstance(batch.plan, StepPlan)
    plan = batch.plan.mix
    plain = plain.reshape(len(plan), -1, *plain.shape[1:])
    mixed = to_pixels(batch.images.numpy(), transform).reshape(len(plan), plan.k, *plain.shape[2:])
    own, fields = shown_labels(batch.labels, names), plan.weights(transform.height_width)
    rows = []
    for b in distinct_pairs(plan.partner, batch.plan.sample, pairs):
        other = int(plan.partner[b])
        tiles = np.concatenate([plain[b, :1], mixed[b], plain[other, -1:]])
        outlined = None if plan.field[b] == Field.CONSTANT else fields[b]
        rows.append(Row(tiles, plan.lam[b], own[b], own[other], outlined, str(plan.method[b]) if named else ""))
    return rows


def distinct_pairs(partner: NDArray[np.int64], sample: NDArray[np.int64], count: int) -> list[int]:
    """Return `count` rows of a batch whose pairs have no sample in common, as far as there are so many.

    `partner` (B,) and `sample` (B,) are each row's partner and sample id.
    """
    chosen: list[int] = []
    used: set[int] = set()
    for row, pair in enumerate(zip(sample.tolist(), sample[partner].tolist(), strict=True)):
        if len(chosen) < count and not used.intersection(pair):
            chosen.append(row)
            used.update(pair)
    return (chosen + [row for row in range(len(partner)) if row not in chosen])[:count]
