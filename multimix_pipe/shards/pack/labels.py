"""Labels of images that lie in no class folder: a table of names and classes, or ImageNet's own files."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards.pack.source import Files

KAGGLE = "LOC_val_solution.csv"
GROUND_TRUTH, META, DEVKIT = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "ILSVRC2012_devkit_t12.tar.gz"

Labels = dict[str, str]
"""Class by the image's file name, and by its file name without extension."""
_Read = Callable[[], bytes]


def find_labels(files: Files, given: Path | None) -> Labels:
    """Return the labels in the file or folder `given`, else those in ImageNet's own files among `files`, else none.

    A table has a line for each image: file name and class, separated by a comma or white space. Raises ConfigError if
    `given` has no labels, or several for an image.
    """
    if given is None:
        known = (name for name in files.sizes if name.rpartition("/")[2] in (KAGGLE, GROUND_TRUTH, META, DEVKIT))
        return _from_imagenet({name.rpartition("/")[2]: partial(files.read, name) for name in known})
    if not given.exists():
        raise ConfigError(f"labels must name a file of image names and classes; found nothing at {given}")
    try:
        beside = given if given.is_dir() else given.parent
        if given.is_file() and given.name not in (KAGGLE, GROUND_TRUTH) and not given.name.endswith(".tar.gz"):
            if given.suffix == ".json":
                raise ConfigError(
                    f"labels in JSON are several per image and need multilabel=True (--multilabel); found {given}"
                )
            labels = _table(given.read_bytes(), given.suffix == ".csv")
        elif given.is_file() and given.name != GROUND_TRUTH:
            labels = _from_imagenet({DEVKIT if given.name.endswith(".tar.gz") else given.name: given.read_bytes})
        else:
            labels = _from_imagenet({path.name: path.read_bytes for path in beside.rglob("*") if path.is_file()})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labels must name a file of image names and classes: {error}") from error
    if not labels:
        raise ConfigError(f"labels must name a file of image names and classes; found none in {given}")
    return labels


def _from_imagenet(found: dict[str, _Read]) -> Labels:
    if KAGGLE in found:  # ILSVRC2012_val_00048981,n03995372 85 1 499 272
        return {image: boxes.partition(" ")[0] for image, boxes in _table(found[KAGGLE](), True).items()}
    if DEVKIT in found:
        return _from_devkit(found[DEVKIT]())
    if GROUND_TRUTH in found and META in found:
        return _ground_truth(found[GROUND_TRUTH](), found[META]())
    return {}


def _from_devkit(archive: bytes) -> Labels:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            parts = {name.rpartition("/")[2]: tar.extractfile(name) for name in tar.getnames()}
            return _ground_truth(*(file.read() for file in (parts[GROUND_TRUTH], parts[META]) if file is not None))
    except (tarfile.TarError, EOFError, OSError, KeyError, TypeError) as error:
        raise ShardError(f"{DEVKIT}: required {GROUND_TRUTH} and {META} in it; found: {error}") from error


def _ground_truth(numbers: bytes, meta: bytes) -> Labels:
    """Line i has the class of the i-th image, as a number that `meta` translates to a WordNet id."""
    import scipy.io

    try:
        synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnid = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        classes = [wnid[int(number)] for number in numbers.split()]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ShardError(f"{GROUND_TRUTH} and {META} are not those of ImageNet's devkit: {error!r}") from error
    return {f"ILSVRC2012_val_{number:08d}": name for number, name in enumerate(classes, 1)}


def _table(data: bytes, commas: bool) -> Labels:
    lines = data.decode("utf-8").splitlines()
    rows = csv.reader(lines) if commas else (line.split(None, 1) for line in lines)
    labels: Labels = {}
    for row in rows:
        if len(row) < 2:
            continue
        name, value = row[0].strip().rpartition("/")[2], row[1].strip()
        if labels.setdefault(name, value) != value:
            raise ConfigError(
                f"labels must give each file name one class; found {labels[name]!r} and {value!r} for {name}. Several classes "
                "per image need multilabel=True (--multilabel)"
            )
    return labels | {name.rpartition(".")[0]: value for name, value in labels.items() if "." in name}
