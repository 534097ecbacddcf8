"""verify finds what cannot be decoded and names it so that the loader can leave it out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shard_files import encode, plain_members, write_tar

from multimix_pipe.shards import open_index
from multimix_pipe.shards.subset import select
from multimix_pipe.shards.verify import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    whole = encode((200, 200), quality=95)
    png = encode((50, 50), kind="PNG")
    write_tar(tmp_path / "a.tar", plain_members(70))
    write_tar(
        tmp_path / "b.tar",
        [
            *plain_members(2),
            ("cut.jpg", whole[: len(whole) // 2]),
            ("cut.cls", b"0"),
            ("flipped.png", png[:60] + b"\xff" + png[61:]),
            ("flipped.cls", b"0"),
            ("nolabel.jpg", whole),
        ],
    )
    return tmp_path


BAD = ["b.tar : cut", "b.tar : flipped", "b.tar : nolabel"]


def test_bad_samples_are_named_with_their_reasons(folder: Path) -> None:
    report = verify(folder, progress=False, workers=2)
    assert report.samples == 75
    assert [sample.name for sample in report.bad] == BAD
    assert [sample.key for sample in report.bad] == ["cut", "flipped", "nolabel"]
    assert "truncated" in report.bad[0].reason
    assert report.bad[2].reason == "there is no label"


def test_good_shards_have_none(folder: Path) -> None:
    assert verify(folder / "a.tar", progress=False).bad == ()


def test_a_shard_changed_under_a_fresh_index_is_seen(folder: Path) -> None:
    path = folder / "a.tar"
    open_index(path, progress=False)
    stat = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(encode((12, 8), colour=2), encode((8, 12), colour=2), 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk does it: same time, other bytes
    assert [sample.reason for sample in verify(path, progress=False).bad] == ["it is 8x12, its header says 12x8"]


def test_written_names_are_what_exclude_takes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_pack import command

    assert command("verify", folder, "--quiet", "--write-bad", tmp_path / "bad.txt") == 1
    assert "75 samples, 3 bad" in capsys.readouterr().out
    index = open_index(folder, progress=False)
    left = select(index, None, tmp_path / "bad.txt")
    assert len(left) == 72
    assert not {index.name(i) for i in left} & set(BAD)
    assert command("verify", folder / "a.tar", "--quiet") == 0
