"""The trainers' tests run by `make test-trainers`, in an environment that has the trainers; `make test` leaves them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.images import KINDS, picture
from helpers.tars import write_tar


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/ (37 samples) and val/ (21), of 3 classes in shards."""
    folder = tmp_path_factory.mktemp("trainers")
    for split, samples in (("train", 37), ("val", 21)):
        (folder / split).mkdir()
        for shard in range(2):
            members = []
            for number in range(shard, samples, 2):
                extension, image = KINDS["420"](picture(number, 20, 16))
                members += [(f"{number:02}.{extension}", image), (f"{number:02}.cls", str(number % 3).encode())]
            write_tar(folder / split / f"{shard}.tar", members)
    return folder
