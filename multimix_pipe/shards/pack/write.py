"""Image folder or zip -> WebDataset shards, the same bytes for the same input and seed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from multimix_pipe.config import check_int, usable_cores
from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards.header import FORMATS
from multimix_pipe.shards.pack.imagefolder import Image, ImageFolder, open_image_folder
from multimix_pipe.shards.progress import Progress

CLASSES = "classes.json"
RUN = "pack.json"
PARTIAL = ".part"
IMAGES_DIGEST = "sha256_of_classes_names_and_sizes"
DEFAULT_QUALITY = 90  # of JPEG, where only max_side is asked for

_ORIENTATION_TAG = 0x0112
_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # convert("RGB") keeps their meaning


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote."""

    shards: tuple[Path, ...]
    classes: tuple[str, ...]
    """Class names by id."""
    samples: int
    bytes: int
    """Bytes of all shards."""
    skipped: int
    """Files of the source that are no images in a class folder."""
    kept: tuple[str, ...]
    """Images that could not be re-encoded and are packed as they are; `verify` says what is wrong with them."""


@dataclass(frozen=True)
class _Settings:
    samples_per_shard: int
    bytes_per_shard: int
    shuffle_seed: int | None
    max_side: int | None
    quality: int | None

    def __post_init__(self) -> None:
        check_int("samples_per_shard", self.samples_per_shard, 1)
        check_int("bytes_per_shard", self.bytes_per_shard, 1)
        if self.shuffle_seed is not None:
            check_int("shuffle_seed", self.shuffle_seed, 0, 2**64 - 1)
        if self.max_side is not None:
            check_int("max_side", self.max_side, 1, 65500)
        if self.quality is not None:
            check_int("quality", self.quality, 1, 100)


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    samples_per_shard: int = 10_000,
    bytes_per_shard: int = 2**30,
    shuffle_seed: int | None = 0,
    max_side: int | None = None,
    quality: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Pack an image folder, or a zip of one, into shards `OUT/shard-000000.tar`, ... and `OUT/classes.json` (id: name).

    The source is read as `open_image_folder` says. One with splits (`train/class/name.jpg`) gives a set of shards for
    each, `OUT/train/train-000000.tar`, ..., with the same class ids; `split` packs only that one. A shard ends at
    `samples_per_shard` or `bytes_per_shard`, whichever comes first.

    `shuffle_seed` permutes the images before writing; None keeps them sorted by path. Bytes are copied as they are
    unless `max_side` (longest side in pixels; smaller images stay as they are) or `quality` (of JPEG, 1..100; all
    images) asks to re-encode them. `workers` threads read and encode (None: one a usable core).

    A shard appears under its name only when whole, `classes.json` only when all are; after an interruption the same
    call starts over. Raises ConfigError where OUT holds shards of another run.
    """
    settings = _Settings(samples_per_shard, bytes_per_shard, shuffle_seed, max_side, quality)
    if workers is not None:
        check_int("workers", workers, 1)
    folder = open_image_folder(source)
    with folder.opened(), ThreadPoolExecutor(workers or usable_cores()) as pool:
        if split is not None and split not in folder.splits:
            have = ", ".join(map(repr, folder.splits)) if folder.splits != ("",) else "no splits"
            raise ConfigError(f"split must be one of the source's; found {split!r}, {source} has {have}")
        reports = [
            _pack_set(folder, name, Path(out) / name, settings, pool, progress)
            for name in (folder.splits if split is None else (split,))
        ]
    return PackReport(
        shards=tuple(shard for report in reports for shard in report.shards),
        classes=folder.classes,
        samples=sum(report.samples for report in reports),
        bytes=sum(report.bytes for report in reports),
        skipped=folder.skipped,
        kept=tuple(path for report in reports for path in report.kept),
    )


def _pack_set(
    folder: ImageFolder, split: str, out: Path, settings: _Settings, pool: ThreadPoolExecutor, progress: bool
) -> PackReport:
    images = [image for image in folder.images if image.split == split]
    keys = _unique_keys(images)
    run = _run_description(folder, images, settings)
    if settings.shuffle_seed is not None:
        # raw words and a stable sort: NumPy promises those bits for ever, not what Generator.permutation makes of them
        words = np.random.Philox(key=settings.shuffle_seed).random_raw(len(images))
        order = np.argsort(words, kind="stable").tolist()
        images, keys = [images[i] for i in order], [keys[i] for i in order]
    _claim(out, run)
    ids = {name: i for i, name in enumerate(folder.classes)}
    kept: list[str] = []
    with (
        warnings.catch_warnings(),
        _Shards(out, split or "shard", settings) as shards,
        Progress(f"packing {split}".rstrip(), total=len(images), unit="image", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of broken metadata and large images; threads see this filter too
        for image, key, (data, extension, fine) in zip(
            images, keys, _encoded(folder, images, settings, pool), strict=True
        ):
            shards.write({"__key__": key, extension: data, "cls": str(ids[image.class_name]).encode()})
            if not fine:
                kept.append(image.path)
            bar.update()
    _write_whole(out / CLASSES, json.dumps(dict(enumerate(folder.classes)), indent=0).encode())
    size = sum(shard.stat().st_size for shard in shards.done)
    return PackReport(tuple(shards.done), folder.classes, len(images), size, folder.skipped, tuple(kept))


def _unique_keys(images: Sequence[Image]) -> list[str]:
    """`class/name` for each image, without dots, which end a key; a number is added where two would be the same."""
    taken: set[str] = set()
    keys = []
    for image in images:
        base = f"{image.class_name}/{image.name}".replace(".", "_").lstrip("_")  # "__" starts metadata
        key, number = base, 2
        while key in taken:
            key, number = f"{base}_{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _run_description(folder: ImageFolder, images: Sequence[Image], settings: _Settings) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps([folder.classes, images]).encode()).hexdigest()
    return {"source": folder.source.name, "images": len(images), IMAGES_DIGEST: digest, **vars(settings)}


def _claim(out: Path, run: dict[str, Any]) -> None:
    """Make `out` this run's: refuse shards of others, remove what an interrupted run left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = next(out.glob("*.tar"), None)
        if found is not None and (difference := _difference(out / RUN, run)):
            raise ConfigError(
                f"{out} already holds {found.name} of another run ({difference}); give an empty folder, "
                "or remove those shards"
            )
        (out / CLASSES).unlink(missing_ok=True)
        for partial in out.glob("*.tar" + PARTIAL):
            partial.unlink()
        _write_whole(out / RUN, json.dumps(run, indent=1).encode())
    except OSError as error:
        raise ConfigError(f"{out}: required a folder to write shards to; {error}") from error


def _difference(path: Path, run: dict[str, Any]) -> str:
    try:
        before = json.loads(path.read_bytes())
        changed = [name for name, value in run.items() if before[name] != value]
        return ", ".join(
            "other images" if name == IMAGES_DIGEST else f"{name} was {before[name]}, is {run[name]}"
            for name in changed
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no {RUN} that `pack` wrote"


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(data)
    os.replace(partial, path)


class _Shards:
    """Writes samples into one shard after the other, as webdataset's ShardWriter; a shard is named when whole."""

    def __init__(self, out: Path, prefix: str, settings: _Settings) -> None:
        # imported here, as nothing but packing needs it and it takes a while
        from webdataset.writer import TarWriter

        self._open_tar = TarWriter
        self._out, self._prefix, self._settings = out, prefix, settings
        self._file: io.BufferedWriter | None = None
        self._tar: TarWriter | None = None
        self._samples = self._bytes = 0
        self.done: list[Path] = []

    def __enter__(self) -> _Shards:
        return self

    def write(self, sample: dict[str, Any]) -> None:
        full = self._samples >= self._settings.samples_per_shard or self._bytes >= self._settings.bytes_per_shard
        try:
            if self._tar is None or full:
                self._finish()
                self._start()
            assert self._tar is not None
            self._bytes += self._tar.write(sample)
        except OSError as error:
            raise ShardError(f"{self._out}: the shard cannot be written: {error}") from error
        self._samples += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._finish()
            except OSError as error:
                raise ShardError(f"{self._out}: the last shard cannot be written: {error}") from error
        elif self._tar is not None and self._file is not None:
            with suppress(OSError):  # of a full disk: the error that brought us here is the one to see
                self._tar.close()
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    def _start(self) -> None:
        name = f"{self._prefix}-{len(self.done):06d}.tar"
        # a file object, never a name: webdataset would run a name that starts with pipe: as a command
        self._file = open(self._out / (name + PARTIAL), "wb")  # noqa: SIM115  closed in _finish
        # fixed owner and time: the same input gives the same bytes
        self._tar = self._open_tar(self._file, encoder=False, user="", group="", mtime=0)
        self._samples = self._bytes = 0

    def _finish(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut could leave the name without the bytes
        self._file.close()
        partial = Path(self._file.name)
        os.replace(partial, partial.with_suffix(""))
        self.done.append(partial.with_suffix(""))
        self._file = self._tar = None


def _encoded(
    folder: ImageFolder, images: Sequence[Image], settings: _Settings, pool: ThreadPoolExecutor
) -> Iterator[tuple[bytes, str, bool]]:
    """(bytes, extension, whether re-encoding went well) of each image in order; threads work a bounded way ahead."""

    def encode(image: Image) -> tuple[bytes, str, bool]:
        data = folder.read(image)
        if settings.max_side is None and settings.quality is None:
            return data, image.extension, True
        try:
            smaller = _reencode(data, settings.max_side, settings.quality)
        except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError):
            return data, image.extension, False
        return (data, image.extension, True) if smaller is None else (smaller, "jpg", True)

    ahead: deque[Future[tuple[bytes, str, bool]]] = deque()
    for image in images:
        ahead.append(pool.submit(encode, image))
        if len(ahead) >= 64:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _reencode(data: bytes, max_side: int | None, quality: int | None) -> bytes | None:
    """JPEG bytes of the image, its longest side at most `max_side`; None where it can stay as it is."""
    image: PillowImage.Image = PillowImage.open(io.BytesIO(data), formats=FORMATS)
    scale = min(1.0, max_side / max(image.size)) if max_side else 1.0
    if scale == 1.0 and quality is None:
        return None
    if image.mode not in _PLAIN_MODES:
        raise ValueError(f"no conversion of {image.mode} to 8 bits")
    exif = PillowImage.Exif()
    if (orientation := image.getexif().get(_ORIENTATION_TAG, 1)) != 1:
        exif[_ORIENTATION_TAG] = orientation  # pixels stay as stored; whoever honours EXIF still can
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.mode != "L":
        image = image.convert("RGB")
    if scale < 1.0:
        image = image.resize(size, PillowImage.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality or DEFAULT_QUALITY, exif=exif)
    return buffer.getvalue()
