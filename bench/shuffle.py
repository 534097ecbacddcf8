"""How well is an epoch shuffled where each shard holds one class?

    python bench/shuffle.py --chart shuffle.png

There are 20 shards of 1,000 samples, one class each, as a class folder gives when it is packed in order. An epoch's order has two
figures: the share of its two most common classes in a batch of 256, averaged over the epoch's full batches, and Kendall's tau
between the epoch's order and the stored order, which is 1 without shuffling and about 0 with a full shuffle. A round is an epoch
with another seed. "a permutation by NumPy" is what a perfect shuffle gives. Each order is read from the samples that the loader
actually returns.

`window` and shuffle buffers only mix nearby samples. They are meant for shards that were shuffled when they were written, as
`multimix-pipe pack` does. webdataset uses `shuffle(1000)`, and `shardshuffle=100` as in its documentation.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from data import kept_folder, open_backend, write_shards
from harness import Bar, draw_bars, machine_line, parser, report
from multimix_pipe import TrainTransform

CLASSES, PER_CLASS, BATCH = 20, 1000, 256
COUNT = CLASSES * PER_CLASS

Order = NDArray[np.int64]
"""(COUNT,) sample numbers; a sample's number is its position in stored order."""


def write_numbered_shards(folder: Path) -> None:
    """Write CLASSES shards of PER_CLASS samples with one image, whose class ids are their numbers, so that a batch's labels tell
    which samples it has; the class that the figures are about is number // PER_CLASS.
    """
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    write_shards(folder, [picture.getvalue()], COUNT, CLASSES, classes=COUNT)


def shards_of(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


def own_order(folder: Path, shuffle: str, seed: int) -> Order:
    """Return the order of this package's loader: epoch number `seed`, read from its labels."""
    options = {"num_classes": COUNT, "last_batch": "partial", "transform": TrainTransform(size=8)}
    with open_backend("torch", k=None, shards=folder, batch_size=BATCH, shuffle=shuffle, **options) as loader:
        loader.set_epoch(seed)
        return np.concatenate([batch.labels.numpy() for batch in loader])


def webdataset_order(folder: Path, shardshuffle: int | bool, seed: int) -> Order:
    """Return the order of webdataset, in one process, with the shuffle buffer of its documentation."""
    import webdataset

    samples = webdataset.WebDataset(shards_of(folder), shardshuffle=shardshuffle, seed=seed).shuffle(1000, seed=seed)
    return np.array([int(sample["cls"]) for sample in samples])


def dali_order(folder: Path, seed: int) -> Order:
    """Return the first COUNT samples of DALI's reader with its default buffer."""
    from nvidia.dali import Pipeline, fn

    reader = Pipeline(batch_size=1000, num_threads=1, device_id=None, seed=seed)
    with reader:
        reader.set_outputs(fn.readers.webdataset(paths=shards_of(folder), ext=["cls"], random_shuffle=True))
    reader.build()
    read = [int(bytes(np.asarray(number))) for _ in range(-(-COUNT // 1000)) for number in reader.run()[0]]
    return np.array(read[:COUNT])


def random_order(folder: Path, seed: int) -> Order:
    """Return a uniformly random permutation, the baseline."""
    return np.random.default_rng(seed).permutation(COUNT)


def two_commonest(order: Order) -> float:
    """Return the share of a batch's two most common classes, averaged over the full batches."""
    batches = (order // PER_CLASS)[: COUNT // BATCH * BATCH].reshape(-1, BATCH)
    counts = np.stack([np.bincount(batch, minlength=CLASSES) for batch in batches])
    return float(np.sort(counts)[:, -2:].sum(1).mean() / BATCH)


def tau(order: Order) -> float:
    """Return Kendall's tau between the order and the stored order."""
    return float(stats.kendalltau(np.arange(len(order)), order).statistic)


CONTENDERS: dict[str, Callable[[Path, int], Order]] = {
    'shuffle="global"': lambda folder, seed: own_order(folder, "global", seed),
    "a permutation by NumPy": random_order,
    'shuffle="window"': lambda folder, seed: own_order(folder, "window", seed),
    "DALI's reader, its default buffer": dali_order,
    "webdataset, shuffle(1000)": lambda folder, seed: webdataset_order(folder, False, seed),
    "webdataset, shardshuffle=100 too": lambda folder, seed: webdataset_order(folder, 100, seed),
}


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw both figures of each order as bars."""
    headings = {
        "share": f"Share of the two most common classes in a batch of {BATCH}",
        "tau": "Absolute value of Kendall's tau between the epoch's order and the stored order",
    }
    groups = {
        heading: [
            Bar(name, np.abs(found[figure]).tolist(), own=name.startswith("shuffle="))
            for name, found in results.items()
        ]
        for figure, heading in headings.items()
    }
    what = f"{CLASSES} shards of {PER_CLASS:,} samples, one class each. Lower is better. Blue: this package"
    draw_bars(path, "How well is an epoch shuffled?", [what, machine_line()], groups, "share, tau")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--chart", type=Path, help="also draw the figures to this PNG file")
    args = arguments.parse_args()
    logging.getLogger("multimix_pipe").setLevel(logging.ERROR)
    folder = kept_folder("numbered", write_numbered_shards)
    results: dict[str, dict[str, list[float]]] = {}
    for name, order_of in CONTENDERS.items():
        orders = [order_of(folder, seed) for seed in range(args.rounds)]
        shares, taus = [two_commonest(order) for order in orders], [tau(order) for order in orders]
        shown = [float(len(np.unique(order))) for order in orders]
        results[name] = {"share": shares, "tau": taus, "samples_shown": shown}
        print(
            f"{name:34} two most common classes {np.median(shares):6.1%} ({min(shares):.1%} .. {max(shares):.1%})   "
            f"tau {np.median(taus):7.4f} ({min(taus):.4f} .. {max(taus):.4f})   each sample once: {set(shown) == {COUNT}}"
        )
    if args.chart is not None:
        draw(results, args.chart)
    report(__doc__, {"orders": results}, args.json)


if __name__ == "__main__":
    main()
