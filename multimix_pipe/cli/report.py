"""multimix-pipe report: one HTML page about shards, to look at before training."""

from __future__ import annotations

import argparse
import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.cli.arguments import add_backend, add_k, add_quiet, add_shards, data_options
from multimix_pipe.config import EvalTransform, TrainTransform, check_int
from multimix_pipe.errors import ConfigError, MultiMixError, counted, printable, redacted
from multimix_pipe.mixing import MultiMix
from multimix_pipe.shards.index import PROBLEMS, Index

if TYPE_CHECKING:
    from PIL import Image

MAX_ROWS = 100
"""Rows of a table; of more, the first and the last half are shown."""
EXAMPLES = 5
"""Samples named for each problem."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #1f77b4; height: .8rem } .bad { color: #b3261e } .muted { color: #666 }
.grid { display: flex; flex-wrap: wrap; gap: .7rem } figure { margin: 0; font-size: .75rem; overflow-wrap: anywhere }
img { max-width: 100% }
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `report`."""
    parser = subparsers.add_parser(
        "report",
        help="write a page to look at before training: classes, sizes, problems, samples, mixes",
        description="Write one self-contained HTML page about shards: samples by class, sizes of images and shards, what "
        "indexing found to be wrong with examples, a grid of samples and a grid of mixed pairs. It decodes only the samples "
        "that it shows; `multimix-pipe verify` decodes all.",
    )
    add_shards(parser)
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="page to write, e.g. report.html")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="samples to show; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=4, metavar="N", help="mixed pairs to show; default: %(default)s")
    add_k(parser)
    parser.add_argument(
        "--alpha", type=float, default=1.0, help="weights from Beta(alpha, alpha); default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what is shown; default: %(default)s")
    add_backend(parser)
    add_quiet(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the page. The exit status is 1 if no sample can be used."""
    from multimix_pipe.cli.classes import class_names
    from multimix_pipe.shards.index import open_index

    check_int("--samples", args.samples, 1, 1000)
    check_int("--pairs", args.pairs, 1, 100)
    data, mix = data_options(args), MultiMix(k=args.k, alpha=args.alpha)
    index = open_index(args.source, progress=not args.quiet, keep_damaged=True, **data)
    names = class_names(index)
    settings = {"seed": args.seed, "backend": args.backend, "num_classes": len(names), **data}
    title = redacted(" ".join(args.source))
    sections = [
        _section("Problems", problems_table(index)),
        _section("Samples", _shown(lambda: sample_grid(args.source, args.samples, names, settings))),
        *([] if data["label"] is None else [_mixes(args, names, mix, settings)]),
        _section("Classes", classes_table(index, names)),
        _section("Images", sizes_table(index)),
        _section("Shards", shards_table(index)),
    ]
    try:
        Path(args.out).write_text(page(title, _summary(index, names), sections), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out must name a file that can be written: {error}") from error
    bad = int(np.count_nonzero(index.problem))
    print(f"wrote {args.out}: {counted(len(index), 'sample')}, {counted(bad, 'problem')}")
    return 1 if bad == len(index) else 0


def page(title: str, summary: str, sections: Sequence[str]) -> str:
    """Return a self-contained page. Its policy forbids scripts and anything from elsewhere, should a name slip through."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1><p>{summary}</p>\n" + "\n".join(sections) + "</body></html>\n"
    )


def problems_table(index: Index) -> str:
    """Return what indexing found to be wrong: damaged shards, and samples by kind of problem with examples."""
    rows = [(_text("damaged"), "", _text(reason)) for _, reason in index.damage]
    for code in sorted(set(index.problem.tolist()) - {0}):
        ids = np.flatnonzero(index.problem == code)
        examples = "<br>".join(_text(f"{index.name(i)}: {index.reason(i)}") for i in ids[:EXAMPLES].tolist())
        rows.append((_text(PROBLEMS[code]), f"{len(ids):,}", examples))
    if not rows:
        return "<p>None. Indexing reads image headers and labels; <code>multimix-pipe verify</code> decodes every image.</p>"
    return _table(("problem", "samples", "first"), rows)


def classes_table(index: Index, names: Sequence[str]) -> str:
    """Return the number of usable samples of each class, by id."""
    counts = index.class_counts(len(names))
    most = max(int(counts.max()), 1)
    rows = [
        (str(i), _text(names[i]), f"{count:,}", f'<div class="bar" style="width:{20 * count / most:.2f}rem"></div>')
        for i, count in enumerate(counts.tolist())
    ]
    empty = int(np.count_nonzero(counts == 0))
    note = f'<p class="bad">{_text(counted(empty, "class"))} without a usable sample</p>' if empty else ""
    return note + _table(("id", "class", "samples", ""), rows)


def sizes_table(index: Index) -> str:
    """Return quantiles of the images' sizes."""
    fine = index.problem == 0
    columns: dict[str, NDArray[Any]] = {
        "width, pixels": index.width,
        "height, pixels": index.height,
        "size, bytes": index.size,
    }
    return _quantiles({name: column[fine] for name, column in columns.items()})


def shards_table(index: Index) -> str:
    """Return quantiles over the shards, and the samples and bytes of each."""
    samples = np.bincount(index.shard, minlength=len(index.shards))
    size = np.array([stamp[0] for stamp in index.stamps])
    rows = [
        (_text(name), f"{count:,}", f"{total / 1e6:,.1f}")
        for name, count, total in zip(index.shard_names, samples.tolist(), size.tolist(), strict=True)
    ]
    return _quantiles({"samples": samples, "size, bytes": size}) + _table(("shard", "samples", "MB"), rows)


def sample_grid(source: list[str], count: int, names: Sequence[str], settings: dict[str, Any]) -> str:
    """Return `count` samples drawn at random, with their classes and names."""
    from PIL import Image

    from multimix_pipe.cli.classes import shown_labels
    from multimix_pipe.cli.picture import to_pixels
    from multimix_pipe.loader import open_loader
    from multimix_pipe.plan import StepPlan

    transform = EvalTransform(size=112)
    options = {"transform": transform, "batch_size": count, "shuffle": "global", "device": "cpu", **settings}
    with open_loader(source, on_bad_sample="replace", **options) as loader:
        batch = next(iter(loader))
        pixels, labels = to_pixels(batch.images.numpy(), transform), shown_labels(batch.labels, names)
        assert isinstance(batch.plan, StepPlan)
        full = [loader.index.full_key(int(i)) for i in batch.plan.sample]
    figures = (
        f"<figure>{_image(Image.fromarray(image))}<br>{_text(label)}<br>"
        f'<span class="muted">{_text(key)}</span></figure>'
        for image, label, key in zip(pixels, labels, full, strict=True)
    )
    return f'<div class="grid">{"".join(figures)}</div>'


def _mixes(args: argparse.Namespace, names: Sequence[str], mix: MultiMix, settings: dict[str, Any]) -> str:
    from multimix_pipe.cli.preview import draw_pairs

    transform = TrainTransform(size=112)
    heading = f"Mixes: K = {mix.k}, weights from Beta({mix.alpha:g}, {mix.alpha:g})"
    return _section(
        heading, _shown(lambda: _image(draw_pairs(args.source, args.pairs, names, mix, transform, **settings)))
    )


def _shown(make: Callable[[], str]) -> str:
    """Return `make()`, or the error of the package that it raises: the rest of the page is useful without it."""
    try:
        return make()
    except MultiMixError as error:
        return f'<p class="bad">{_text(str(error))}</p>'


def _summary(index: Index, names: Sequence[str]) -> str:
    bad = int(np.count_nonzero(index.problem))
    parts = [counted(len(index), "sample"), counted(len(index.shards), "shard"), counted(len(names), "class")]
    return _text(f"{', '.join(parts)}, {index.size.sum() / 1e6:,.1f} MB of images, {counted(bad, 'problem')}")


def _quantiles(columns: dict[str, NDArray[Any]]) -> str:
    heads = ("", "least", "5%", "median", "95%", "most")
    rows = [
        (_text(name), *(f"{value:,.0f}" for value in np.quantile(column, [0, 0.05, 0.5, 0.95, 1])))
        for name, column in columns.items()
        if len(column)
    ]
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are HTML. Those that are numbers are aligned right."""
    half = MAX_ROWS // 2
    left_out = len(rows) - MAX_ROWS
    if left_out > 0:
        rows = [*rows[:half], (f'<span class="muted">{left_out:,} more</span>',), *rows[-half:]]
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{_text(head)}</th>' for head in heads)}</tr>{body}</table>"


def _cell(content: str) -> str:
    number = content.replace(",", "").replace(".", "").isdigit()
    return f'<td class="n">{content}</td>' if number else f"<td>{content}</td>"


def _section(heading: str, *content: str) -> str:
    return f"<h2>{_text(heading)}</h2>\n{''.join(content)}"


def _text(text: str) -> str:
    """Escape `text` for HTML: names come from untrusted shards."""
    return html.escape(printable(text))


def _image(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
