"""The .idx files are those of DALI's wds2idx, and DALI's reader takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.images import plain_image
from helpers.tars import plain_members, write_tar
from multimix_pipe.errors import ShardError
from multimix_pipe.shards import list_shards
from multimix_pipe.shards.dali_index import write_dali_indexes


def test_the_format_is_version_1_2(tmp_path: Path) -> None:
    members = [("d/a.jpg", b"12345"), ("d/a.cls", b"1"), ("__x__", b""), ("b b.seg.PNG", b""), ("d/b.JPG", b"123")]
    path = write_tar(tmp_path / "x.tar", members)
    (index,) = write_dali_indexes([path])
    assert index == tmp_path / "x.idx"
    assert index.read_text().splitlines() == [
        "v1.2 3",
        "jpg 512 5 d/a.jpg cls 1536 1 d/a.cls",
        "seg.png 3072 0 b_b.seg.PNG",
        "jpg 3584 3 d/b.JPG",
    ]


def test_same_names_from_two_folders_do_not_overwrite_each_other(tmp_path: Path) -> None:
    shards = []
    for name in "ab":
        (tmp_path / name).mkdir()
        shards.append(write_tar(tmp_path / name / "x.tar", plain_members(1)))
    with pytest.raises(ShardError, match="same name"):
        write_dali_indexes(shards, tmp_path / "idx")
    assert len(set(write_dali_indexes(shards))) == 2


def test_dalis_reader_gives_the_samples_by_these_files(tmp_path: Path) -> None:
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    pipeline = pytest.importorskip("nvidia.dali.pipeline")

    members = plain_members(6)
    write_tar(tmp_path / "a.tar", members[:6])
    # labels after all images, names beyond 100 characters: what a plain walk through the tar would not group
    apart = [("n" * 150 + name, data) for name, data in members[6::2] + members[7::2]]
    write_tar(tmp_path / "b.tar", apart)
    shards = list_shards(tmp_path)
    indexes = write_dali_indexes(shards, tmp_path / "idx")

    @pipeline.pipeline_def(batch_size=6, num_threads=1, device_id=None)
    def read() -> object:
        images, labels = fn.readers.webdataset(
            paths=[str(path) for path in shards], index_paths=[str(path) for path in indexes], ext=["jpg", "cls"]
        )
        return images, labels

    built = read()
    images, labels = built.run()
    for i in range(6):
        assert np.asarray(images[i]).tobytes() == plain_image((10 + i, 8), colour=i)
        assert np.asarray(labels[i]).tobytes() == str(i).encode()
