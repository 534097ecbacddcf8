"""FFCV's own file of the samples of shards, with the JPEGs as they are in the shards."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image

from multimix_pipe.shards import Index


class EncodedImage(RGBImageField):  # type: ignore[misc]
    """An image given as its file's bytes: a JPEG of RGB or grey is stored as it is; FFCV's field would encode it anew.

    All else is encoded as the JPEG that FFCV's field makes of it.
    """

    def __init__(self) -> None:
        super().__init__(write_mode="jpg")

    def encode(self, destination: Any, image: bytes, malloc: Any) -> None:
        """Write one image: its place and size to `destination`, its bytes to what `malloc` gives."""
        with Image.open(io.BytesIO(image)) as picture:
            if picture.format != "JPEG" or picture.mode not in ("RGB", "L"):
                super().encode(destination, np.array(picture.convert("RGB")), malloc)
                return
            width, height = picture.size
        destination["mode"], destination["width"], destination["height"] = 0, width, height
        destination["data_ptr"], storage = malloc(len(image))
        storage[:] = np.frombuffer(image, dtype=np.uint8)


class _Samples:
    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        index = self._index
        with open(index.shards[index.shard[i]], "rb") as file:
            return os.pread(file.fileno(), int(index.size[i]), int(index.offset[i])), int(index.label[i])


def write_file(index: Index, target: Path, workers: int) -> None:
    """Write all samples of `index` that have no problem, as the fields `image` and `label`."""
    writer = DatasetWriter(str(target), {"image": EncodedImage(), "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(_Samples(index), indices=np.flatnonzero(index.problem == 0).tolist())
