"""Members are those that Python's tarfile finds, however the tar is written or damaged; or the shard is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from webdataset import TarWriter

from helpers.tars import header, sealed, write_tar
from multimix_pipe.errors import ShardError
from multimix_pipe.shards.tar import Member, read_batches, read_members, walk
from multimix_pipe.shards.tar.headers import BLOCK

T = TypeVar("T")


def members_of(path: Path) -> list[Member]:
    with open(path, "rb") as file:
        return list(read_members(file, path))


def members_by_tarfile(path: Path) -> list[Member]:
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as file:
        infos = list(file)
    files = {info.name: (info.offset_data, info.size) for info in infos if info.isreg() and not info.issparse()}
    members = []
    for info in infos:
        if info.islnk() and info.linkname in files:
            members.append(Member(info.name, *files[info.linkname]))
        elif info.islnk() or info.issym() or info.issparse():
            kind = "hard link to nothing" if info.islnk() else "symbolic link" if info.issym() else "sparse"
            members.append(Member(f"{info.name} ({kind})", info.offset_data, 0))
        elif info.isreg():
            members.append(Member(info.name, info.offset_data, info.size))
    return members


@pytest.fixture
def tarfile_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where tarfile was asked for a header; it reads the first one always, to see whether this is a tar at all."""
    asked: list[int] = []
    real = tarfile.TarInfo.fromtarfile.__func__  # type: ignore[attr-defined]

    def counted(cls: type[tarfile.TarInfo], file: tarfile.TarFile) -> tarfile.TarInfo:
        asked.append(file.fileobj.tell())  # type: ignore[union-attr]
        found: tarfile.TarInfo = real(cls, file)
        return found

    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(counted))
    return asked


def tar_of(path: Path, *blocks: bytes) -> Path:
    padded = [block + bytes(-len(block) % BLOCK) for block in blocks]
    path.write_bytes(b"".join(padded) + bytes(2 * BLOCK))
    return path


def odd_tar(path: Path, seed: int) -> Path:
    """Members of all sizes, kinds and lengths of name, in a format drawn by the seed."""
    draw = np.random.default_rng(seed)

    def pick(*values: T) -> T:
        return values[draw.integers(len(values))]

    format = pick(tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    with tarfile.open(path, "w", format=format) as file:
        for number in range(draw.integers(1, 60)):
            long = format != tarfile.USTAR_FORMAT and pick(True, False, False, False)
            name = f"é{number:04}" * 30 if long else f"n{number:04}"
            info = tarfile.TarInfo(pick("", "a/", "./b.c/", "d" * 90 + "/") + name + ".jpg")
            info.type = pick(
                *[tarfile.REGTYPE] * 8, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CONTTYPE
            )
            if info.islnk():
                info.linkname = pick(*file.getnames(), "nothing")
            info.size = pick(0, 1, 511, 512, 513, 3000, 20_000, 100_000) if info.isreg() else 0
            if format == tarfile.PAX_FORMAT and pick(True, False):
                info.mtime = pick(1.5, 1700000000.123)
                info.pax_headers = pick({}, {"comment": "x"}, {"SCHILY.xattr.user.a": "\n"}, {"size": str(info.size)})
            file.addfile(info, io.BytesIO(draw.bytes(info.size)))
    return path


@pytest.mark.parametrize("small_buffers", [False, True])
def test_members_are_those_of_tarfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_buffers: bool) -> None:
    if small_buffers:  # every place at which a window or a batch can end comes up
        monkeypatch.setattr(walk, "_BUFFER", 2**14)
        monkeypatch.setattr(walk, "_WIDE_WINDOW", 2**13)
    for seed in range(40):
        path = odd_tar(tmp_path / f"{seed}.tar", seed)
        assert members_of(path) == members_by_tarfile(path), seed


def test_a_damaged_tar_is_refused_or_read_as_tarfile_reads_it(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    refused = 0
    for seed in range(20):
        path = odd_tar(tmp_path / "x.tar", seed)
        whole = path.read_bytes()
        for _ in range(15):
            data = bytearray(whole)
            for at in draw.integers(len(data), size=draw.choice([1, 2, 30])).tolist():
                data[at // BLOCK * BLOCK + at % draw.choice([BLOCK, 160])] ^= 1 << draw.integers(8)
            cut = draw.integers(len(data)) if draw.integers(3) == 0 else len(data)
            path.write_bytes(data[:cut])
            try:
                found = members_of(path)
            except ShardError:
                refused += 1
            else:
                assert found == members_by_tarfile(path)
    assert 50 < refused < 290


@pytest.mark.parametrize("mtime", [0, 1700000000.25])
def test_shards_as_webdataset_writes_them_need_no_tarfile(
    tmp_path: Path, tarfile_reads: list[int], mtime: float
) -> None:
    path = tmp_path / "x.tar"
    with TarWriter(str(path), mtime=mtime) as writer:
        for i in range(50):
            writer.write({"__key__": f"n{i % 3}/{i:03d}", "jpg": bytes(i * 300), "cls": i})
    expected = members_by_tarfile(path)
    tarfile_reads.clear()
    assert members_of(path) == expected
    assert len(expected) == 100
    assert max(tarfile_reads) <= 1024  # of the first member


@pytest.mark.parametrize(
    ("block", "by_tarfile"),
    [
        (header(), False),
        (header(size=b"%011o " % 5), False),
        (header(checksum=lambda total: b"%07o\0" % total), False),
        (header(checksum=lambda total: b"%6o\0 " % total), True),
        (header(size=b"%11o " % 5), True),
        (header(size=b"%012o" % 5), True),
        (header(size=b"\x80" + (5).to_bytes(11, "big")), True),
        (header(name="ü.jpg".encode(), checksum=lambda total: b"%06o\0 " % (total - 2 * 256)), True),  # of signed bytes
        (header(kind=b"\0"), True),
        (header(kind=b"7"), True),
    ],
)
def test_headers_of_all_writers_are_read(
    tmp_path: Path, tarfile_reads: list[int], block: bytes, by_tarfile: bool
) -> None:
    path = tar_of(tmp_path / "x.tar", header(b"first.jpg"), b"12345", block, b"12345", header(b"last.jpg"), b"12345")
    names = [member.name for member in members_of(path)]
    assert names == ["first.jpg", block[:100].rstrip(b"\0").decode(), "last.jpg"]
    assert (2 * BLOCK in tarfile_reads) == by_tarfile


@pytest.mark.parametrize(
    "block",
    [
        header(size=b"-0000000005\0"),
        header(size=b"-7777777777\0"),
        header(size=b"0000000_005\0"),
        header(size=b"\xff" * 12),
        header(size=b"\x80" + b"\xff" * 11),
        header(size=b"77777777777\0"),
        header(kind=b"L", size=b"77777777777\0"),
        header(kind=b"x", size=b"77777777777\0"),
        header(kind=b"x", size=b"-0000000005\0"),
        header(kind=b"L", size=b"\x80" + b"\xff" * 11),
        header(kind=b"5", size=b"-0000001000\0"),
        header(kind=b"?", size=b"-0000001000\0"),
        header(kind=b"?", size=b"00000100000\0"),
        b"".join([header(kind=b"L", size=b"00000000000\0")] * 3000),
        header(kind=b"x", size=b"%011o\0" % 12) + b"12 size=-99\n".ljust(BLOCK, b"\0") + header(),
        header(checksum=lambda total: b"%06o\0 " % (total + 1)),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_hostile_header_is_refused_and_never_a_hang_or_a_bomb(tmp_path: Path, block: bytes, first: bool) -> None:
    before = () if first else (header(b"first.jpg"), b"12345")
    path = tar_of(tmp_path / "x.tar", *before, block, b"12345", header(b"last.jpg"), b"12345")
    if block[124:136] == b"0000000_005\0":  # tarfile takes it, and so does webdataset
        assert members_of(path) == members_by_tarfile(path)
    else:
        with pytest.raises(ShardError, match=r"x\.tar.*(damaged|cut short|not a whole tar)"):
            members_of(path)


def test_many_headers_of_a_rare_writer_take_no_more_than_linear_time(tmp_path: Path, tarfile_reads: list[int]) -> None:
    block = header(checksum=lambda total: b"%6o\0 " % total)
    path = tar_of(tmp_path / "x.tar", *[block, b"12345"] * 2000)
    assert len(members_of(path)) == 2000
    assert len(tarfile_reads) < 2100


def test_a_comment_for_all_members_changes_nothing(tmp_path: Path, tarfile_reads: list[int]) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "0123abcd"}) as file:  # as git archive writes it
        for i in range(30):
            file.addfile(tarfile.TarInfo(f"{i}.jpg"))
    assert [member.name for member in members_of(path)] == [f"{i}.jpg" for i in range(30)]
    assert len(tarfile_reads) < 10


def test_records_for_all_members_are_heeded(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", pax_headers={"path": "all.jpg"}) as file:
        for i in range(3):
            file.addfile(tarfile.TarInfo(f"{i}.jpg"))
    assert members_of(path) == members_by_tarfile(path)
    assert members_of(path)[0].name == "all.jpg"


def test_the_first_bytes_of_each_member_are_at_hand(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    data = [draw.bytes(draw.choice([0, 1, 5, 600, 5000, 200_000])) for _ in range(300)]
    names = [f"{i:03}.{'x' * (150 * (i % 7 == 0))}jpg" for i in range(300)]  # some long, which tarfile reads
    path = write_tar(tmp_path / "x.tar", zip(names, data, strict=True))
    seen = 0
    with open(path, "rb") as file:
        for members in read_batches(file, path):
            for start, have in zip(members.start.tolist(), members.have.tolist(), strict=True):
                assert members.buffer[start : start + have].tobytes() == data[seen][:have]
                assert have >= min(len(data[seen]), 2000)
                seen += 1
    assert seen == 300


def test_the_times_of_an_incremental_archive_are_no_part_of_a_name(tmp_path: Path, tarfile_reads: list[int]) -> None:
    plain = header(b"a/b.jpg")
    times = bytearray(plain)
    times[257:265] = b"ustar  \0"
    times[345:369] = b"%011o\0%011o\0" % (
        1_700_000_000,
        1_700_000_001,
    )  # atime and ctime, as tar --incremental writes them
    for checksum in (
        lambda total: b"%06o\0 " % total,
        lambda total: b"%6o\0 " % total,
    ):  # the second is read by tarfile
        block = sealed(bytes(times), checksum)
        path = tar_of(
            tmp_path / "x.tar", header(b"first.jpg"), b"12345", block, b"12345", header(b"last.jpg"), b"12345"
        )
        assert [member.name for member in members_of(path)] == ["first.jpg", "a/b.jpg", "last.jpg"]


@pytest.mark.parametrize(
    "end",
    [bytes(4 * 2**20 - 3 * BLOCK), bytes(1024) + b"\n", bytes(1024) + b"junk" * 700, b"\n", bytes(2**19) + b"\n"],
    ids=["a long record", "newline", "junk", "newline after half a mark", "newline after zeros"],
)
def test_what_gnu_tar_ignores_behind_the_end_is_ignored(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(header() + b"12345".ljust(BLOCK, b"\0") + bytes(BLOCK) + end)
    assert members_of(path) == [Member("a.jpg", BLOCK, 5)]


@pytest.mark.parametrize("zeros", [1, 2, 5000])
def test_members_behind_zeros_are_never_lost_in_silence(tmp_path: Path, zeros: int) -> None:
    member = header() + b"12345".ljust(BLOCK, b"\0")
    path = tmp_path / "x.tar"
    path.write_bytes(member + bytes(zeros * BLOCK) + b"?" * BLOCK * 3 + member)
    with pytest.raises(ShardError, match="zeros instead of a header") as caught:
        members_of(path)
    assert "truncate" not in str(caught.value)


def test_more_zeros_than_a_record_behind_the_end_say_how_to_cut_them_off(tmp_path: Path) -> None:
    member = header() + b"12345".ljust(BLOCK, b"\0")
    path = tmp_path / "x.tar"
    path.write_bytes(member + bytes(2**20 + 5 * BLOCK))  # what a download that stopped leaves of an allocated file
    with pytest.raises(ShardError, match=r"copy or download it again, or, if .*: truncate -s 2048 FILE"):
        members_of(path)
    os.truncate(path, 2048)
    assert members_of(path) == [Member("a.jpg", BLOCK, 5)]
