"""The index says where each sample is and what it is, for tars of any writer; a damaged one is noticed."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_iterator

from helpers.images import plain_image
from helpers.tars import index_of, plain_members, resealed, write_tar
from multimix_pipe.errors import ConfigError, MultiMixError, ShardError
from multimix_pipe.shards import PROBLEMS, Index
from multimix_pipe.shards.index.store import cache_folder, load_table, save_table


def image_bytes(index: Index, i: int) -> bytes:
    with open(index.shards[index.shard[i]], "rb") as file:
        return os.pread(file.fileno(), int(index.size[i]), int(index.offset[i]))


def assert_holds(index: Index, members: list[tuple[str, bytes]]) -> None:
    """`index` has the samples of `members` (jpg, cls, jpg, cls, ...) in order."""
    assert index.keys(range(len(index))) == [name.removesuffix(".jpg") for name, _ in members[::2]]
    assert list(index.each_key()) == index.keys(range(len(index)))
    assert [image_bytes(index, i) for i in range(len(index))] == [data for _, data in members[::2]]
    assert index.label.tolist() == [int(data) for _, data in members[1::2]]
    assert not index.problem.any()


def test_columns_have_the_stated_types_and_order(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"s{i}.tar", plain_members(i, start=10 * i))
    index = index_of(tmp_path)
    assert len(index) == 3
    assert index.shard.tolist() == [1, 2, 2]
    assert index.label.tolist() == [10, 20, 21]
    assert index.width.tolist() == [20, 30, 31]
    assert index.height.tolist() == [8, 8, 8]
    assert index.orientation.tolist() == [1, 1, 1]
    assert index.name(2) == "s2.tar : 0021"
    kinds = {field.name: getattr(index, field.name).dtype.name for field in fields(index) if field.name in _DTYPES}
    assert kinds == _DTYPES
    assert all(shard.is_absolute() for shard in index.shards)


_DTYPES = {
    "shard": "int32",
    "offset": "int64",
    "size": "int64",
    "label": "int64",
    "width": "int32",
    "height": "int32",
    "orientation": "uint8",
    "problem": "uint8",
}

LONG = ["a", "d" * 99 + "/" + "e" * 60, "f" * 180, "g" * 300, "ü/ж/中" * 30, "with space/and 'quote'"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_and_long_names_are_read(tmp_path: Path, format: int) -> None:
    keys = LONG if format != tarfile.USTAR_FORMAT else LONG[:2]
    members = []
    for i, key in enumerate(keys):
        members += [(key + ".jpg", plain_image((10, 8), colour=i)), (key + ".cls", str(i).encode())]
    assert_holds(index_of(write_tar(tmp_path / "x.tar", members, format=format)), members)


@pytest.mark.parametrize("format", ["gnu", "posix", "ustar"])
def test_tars_of_the_system_tar_are_read(tmp_path: Path, format: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no system tar")
    keys = LONG if format != "ustar" else LONG[:2]
    members = []
    for i, key in enumerate(keys):
        members += [(key + ".jpg", plain_image((10, 8), colour=i)), (key + ".cls", str(i).encode())]
    members = [member for member in members if all(len(os.fsencode(part)) < 256 for part in member[0].split("/"))]
    names = tmp_path / "names"
    names.write_text("\n".join(name for name, _ in members))
    for name, data in members:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    command = [
        "tar",
        "--create",
        f"--format={format}",
        "-C",
        tmp_path / "in",
        "--verbatim-files-from",
        "-T",
        names,
        "-f",
    ]
    made = subprocess.run([*command, tmp_path / "x.tar"], capture_output=True)
    if made.returncode:
        pytest.skip(f"this tar has other options: {made.stderr.decode()}")
    assert_holds(index_of(tmp_path / "x.tar"), members)


def test_a_tar_of_a_whole_folder_keeps_webdatasets_keys(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no system tar")
    (tmp_path / "in").mkdir()
    for name, data in plain_members(3):
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", "."], check=True)
    index = index_of(tmp_path / "x.tar")
    assert sorted(index.keys(range(3))) == ["./0000", "./0001", "./0002"]


def test_the_index_groups_samples_as_webdataset_does(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with TarWriter(str(path)) as writer:
        for i in range(5):
            writer.write(
                {"__key__": f"dir.a/{i:03d}", "jpg": plain_image((9 + i, 9)), "cls": i, "seg.png": b"no image"}
            )
    with open(path, "rb") as file:
        files = ({**member, "__url__": str(path)} for member in tar_file_iterator(file))
        samples = [(sample["__key__"], sample["jpg"], int(sample["cls"])) for sample in group_by_keys(files)]
    index = index_of(path)
    found = [(index.key(i), image_bytes(index, i), int(index.label[i])) for i in range(len(index))]
    assert found == samples
    assert len(found) == 5


def test_members_of_a_sample_may_come_in_any_order_and_apart(tmp_path: Path) -> None:
    members = plain_members(4)
    images, labels = members[::2], members[1::2]
    assert_holds(index_of(write_tar(tmp_path / "x.tar", labels + images)), members)
    assert_holds(index_of(write_tar(tmp_path / "y.tar", images + labels[::-1])), members)


def test_other_members_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.tar"
    members = plain_members(2)
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"?", **kind: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in kind.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        add("folder.jpg", b"", type=tarfile.DIRTYPE)
        add("__meta__.jpg", plain_image())
        add("__index__/0000.jpg", plain_image())
        add(".DS_Store")
        add("sub/._0000.jpg", plain_image())
        add("README")
        for name, data in members:
            add(name, data)
        add("0000.json", b"{}")
        add("0000.seg.png", plain_image(kind="PNG"))
        add("link.jpg", b"", type=tarfile.SYMTYPE, linkname="0000.jpg")
        add("hard.jpg", b"", type=tarfile.LNKTYPE, linkname="0000.jpg")
        add("no-image.txt")
    caplog.set_level(logging.INFO)
    index = index_of(path)
    assert index.key(2) == "hard"  # the link's data, which has no label
    assert PROBLEMS[int(index.problem[2])] == "there is no label"
    assert image_bytes(index, 2) == members[0][1]
    assert index.keys(range(3)) == ["0000", "0001", "hard"]
    assert index.label.tolist() == [0, 1, -1]
    assert index.without_image == 2
    assert "2 groups of members without an image and a label are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "kind"), [("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.Png", "PNG"), ("a.webp", "WEBP"), ("a.jpg", "PNG")]
)
def test_images_are_found_by_extension_and_read_by_content(tmp_path: Path, name: str, kind: str) -> None:
    index = index_of(write_tar(tmp_path / "x.tar", [("a.cls", b"1"), (name, plain_image((31, 17), kind=kind))]))
    assert (index.width[0], index.height[0], index.problem[0]) == (31, 17, 0)


@pytest.mark.parametrize("order", [["a.png", "a.jpg"], ["a.jpg", "a.png"]])
def test_of_two_images_the_order_of_extensions_decides_not_that_of_members(tmp_path: Path, order: list[str]) -> None:
    data = {"a.jpg": plain_image((20, 10)), "a.png": plain_image((30, 10), kind="PNG")}
    index = index_of(write_tar(tmp_path / "x.tar", [("a.cls", b"1"), *((name, data[name]) for name in order)]))
    assert index.width.tolist() == [20]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (b"7", 7, None),
        (b" 12\r\n", 12, None),
        (b"+3", 3, None),
        (b"", -1, "not an integer"),
        (b"cat", -1, "not an integer"),
        (b"1.0", -1, "not an integer"),
        (b"1_0", -1, "not an integer"),
        ("٣".encode(), -1, "not an integer"),
        (b"1" * 5000, -1, "not an integer"),
        (b"-1", -1, "negative"),
        (b"9223372036854775808", -1, "64 bits"),
        (None, -1, "no label"),
    ],
)
def test_class_ids_are_ascii_integers(tmp_path: Path, text: bytes | None, label: int, message: str | None) -> None:
    members = [("a.jpg", plain_image())] + ([("a.cls", text)] if text is not None else [])
    index = index_of(write_tar(tmp_path / "x.tar", members))
    assert index.label.tolist() == [label]
    assert (index.problem[0] == 0) == (message is None)
    if message:
        assert message in PROBLEMS[int(index.problem[0])]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (b'{"y": 5, "cls": 1}', 5, None),
        (b'{"y": true}', -1, "not an integer"),
        (b'{"y": "5"}', -1, "not an integer"),
        (b'{"y": 5.0}', -1, "not an integer"),
        (b'{"y": -5}', -1, "negative"),
        (b'{"x": 5}', -1, "no label"),
        (b"[5]", -1, "JSON object"),
        (b"{" * 10, -1, "JSON object"),
        (b"[" * 100_000, -1, "JSON object"),
        (None, -1, "no label"),
    ],
)
def test_labels_from_json(tmp_path: Path, text: bytes | None, label: int, message: str | None) -> None:
    members = [("a.jpg", plain_image()), ("a.cls", b"3")] + ([("a.json", text)] if text is not None else [])
    path = write_tar(tmp_path / "x.tar", members)
    index = index_of(path, label="json:y")
    assert index.label.tolist() == [label]
    assert (index.problem[0] == 0) == (message is None)
    if message:
        assert message in PROBLEMS[int(index.problem[0])]
    assert index_of(path).label.tolist() == [3]  # each label has an index of its own


@pytest.mark.parametrize("label", ["json", "json:", "CLS", ""])
def test_an_unknown_label_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ConfigError, match="json:KEY"):
        index_of(tmp_path, label=label)


def test_an_unreadable_image_is_a_sample_with_a_problem(tmp_path: Path) -> None:
    members = [("a.jpg", b"junk"), ("a.cls", b"1"), ("b.jpg", b""), ("b.cls", b"1"), *plain_members(1)]
    index = index_of(write_tar(tmp_path / "x.tar", members))
    assert [PROBLEMS.get(code) for code in index.problem.tolist()] == ["the image header cannot be read"] * 2 + [None]
    assert index.width.tolist() == [0, 0, 10]
    assert index.label.tolist() == [1, 1, 0]


@pytest.mark.parametrize("again", ["0001.JPG", "0001.jpg", "0001.cls"])
def test_a_member_that_comes_twice_costs_its_sample_alone(tmp_path: Path, again: str) -> None:
    index = index_of(
        write_tar(tmp_path / "x.tar", [*plain_members(3), (again, b"1"), ("0000.txt", b""), ("0000.txt", b"")])
    )
    assert index.problem.astype(bool).tolist() == [False, True, False]
    found = again.lower().partition(".")[2]
    assert index.reason(1) == f"two members have the same key and extension; found two members .{found}"


def test_an_empty_shard_among_others_is_fine(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", plain_members(2))
    assert index_of(tmp_path).shard.tolist() == [1, 1]


def test_shards_without_any_image_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.npy", b"?"), ("b.npy", b"?"), ("a.cls", b"1")])
    with pytest.raises(ShardError, match=r"no sample with an image in 1 shard; .*2 \.npy, 1 \.cls"):
        index_of(tmp_path)


@pytest.mark.parametrize("keep", [100, 700, 1600, 2048, 4000])
def test_a_cut_shard_is_named(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", plain_image()), ("a.cls", b"1"), ("b.jpg", b"x" * 3000)])
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ShardError, match=r"x\.tar.*(cut|not a whole tar|not a tar)"):
        index_of(path)


def test_a_shard_without_an_end_mark_is_damaged_and_one_with_half_of_it_is_not(tmp_path: Path) -> None:
    members = plain_members(2)
    path = write_tar(tmp_path / "x.tar", members)
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + b"\0" * (-len(data) % 512))
    with pytest.raises(ShardError, match="the file ends: it was cut between two members, or its writer was not closed"):
        index_of(path)
    path.write_bytes(path.read_bytes() + bytes(512))
    assert_holds(index_of(path), members)


def test_what_lies_behind_an_end_mark_is_not_lost_in_silence(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(2))
    path.write_bytes(2 * path.read_bytes())  # as `cat a.tar b.tar` makes it
    with pytest.raises(ShardError, match=r"zeros instead of a header, [0-9,]+ bytes before the end"):
        index_of(path)


def test_a_damaged_header_in_the_middle_does_not_pass_as_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(3))
    data = bytearray(path.read_bytes())
    data[data.index(b"0001.jpg") + 150] ^= 0xFF  # its checksum
    path.write_bytes(data)
    with pytest.raises(ShardError, match="damaged or cut at byte"):
        index_of(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "x.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(ShardError, match=r"is compressed.*decompress it"):
        index_of(tmp_path / "x.tar")


def test_two_openings_give_the_same_index_and_the_second_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(5))
    first = index_of(path)
    monkeypatch.setattr("multimix_pipe.shards.index.build.scan_shard", None)  # would fail if it were called
    second = index_of(path)
    assert first.key_buffer == second.key_buffer
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in _DTYPES)
    with pytest.raises(TypeError):
        index_of(path, rebuild=True)


def test_a_changed_shard_is_indexed_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(5))
    stat = path.stat()
    index_of(path)
    write_tar(path, plain_members(5, start=5))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert path.stat().st_size == stat.st_size
    assert index_of(path).label.tolist() == [5, 6, 7, 8, 9]


def _flip(data: bytearray) -> bytearray:
    data[len(data) // 2] ^= 1
    return data


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"no zip at all",
        lambda data: resealed(data.replace(b"multimix_pipe index", b"anothers_pipe index")),
        lambda data: resealed(data.replace(b'"version": 4', b'"version": 3')),
        lambda data: resealed(data.replace(b'"samples": 20', b'"samples": 19')),
        lambda data: resealed(data.replace(b'"samples": 20', b'"samples": 10000000000000')),
        lambda data: resealed(data.replace(b'"shard_size"', b'"sharp_size"')),
        lambda data: resealed(b"012345678" + b"[" * 100_000 + b"\n"),
        lambda data: data + b"more",
        _flip,
    ],
    ids=["cut", "empty", "other", "magic", "version", "fewer", "more", "field", "nested", "longer", "bit"],
)
def test_a_damaged_index_is_noticed_and_built_again(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    members = plain_members(20)
    path = write_tar(tmp_path / "x.tar", members)
    index_of(path)
    file = tmp_path / "x.tar.index"
    good = file.read_bytes()
    assert good == resealed(good)
    bad = bytes(damage(bytearray(good)))  # type: ignore[operator]
    assert bad != good
    file.write_bytes(bad)
    assert_holds(index_of(path), members)
    assert caplog.text.count("is damaged") == 1
    assert file.read_bytes() == good


def test_a_stale_index_is_no_warning_even_beside_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(3))
    index_of(path)
    place = cache_folder(tmp_path, tmp_path / "cache")
    place.mkdir(parents=True)
    (tmp_path / "x.tar.index").rename(place / "x.tar.index")
    (tmp_path / "x.tar.index").write_bytes(b"damaged")
    os.utime(path, (0, 0))
    caplog.set_level(logging.INFO)
    assert load_table(path, "cls", tmp_path / "cache") is None
    found = [(record.levelname, "is damaged" in record.message) for record in caplog.records]
    assert found == [("WARNING", True), ("INFO", False)]


@pytest.mark.parametrize(
    ("column", "value"),
    [("offset", -1), ("offset", 2**63 - 1), ("size", -1), ("size", 2**62), ("size", 2**63 - 1), ("problem", 99)],
)
def test_an_index_that_leads_out_of_its_shard_is_built_again(
    tmp_path: Path, column: str, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    members = plain_members(3)
    path = write_tar(tmp_path / "x.tar", members)
    index_of(path)
    table = load_table(path, "cls", None)
    assert table is not None
    rows = table.rows.copy()
    rows[column][1] = value
    save_table(tmp_path / "x.tar.index", replace(table, rows=rows), "cls")
    assert_holds(index_of(path), members)
    assert "is damaged" in caplog.text


def test_an_index_never_runs_pickled_code(tmp_path: Path) -> None:
    members = plain_members(2)
    path = write_tar(tmp_path / "x.tar", members)
    index_of(path)
    calls_fail = b"cpytest\nfail\n(S'it was unpickled'\ntR."  # what pickle.loads would run
    (tmp_path / "x.tar.index").write_bytes(resealed(b"012345678" + calls_fail))
    assert_holds(index_of(path), members)


def test_where_the_folder_is_not_writable_the_index_goes_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a folder in place of the lock file: opening it for writing fails for everybody, root too
    data = tmp_path / "data"
    (data / ".multimix-index.lock").mkdir(parents=True)
    path = write_tar(data / "x.tar", plain_members(3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert index_of(path).label.tolist() == [0, 1, 2]
    assert not list(data.glob("*.index"))
    assert len(list((tmp_path / "cache").rglob("x.tar.index"))) == 1
    monkeypatch.setattr("multimix_pipe.shards.index.build.scan_shard", None)
    assert index_of(path).label.tolist() == [0, 1, 2]


def test_where_the_folder_is_not_writable_the_index_goes_to_cache_dir_where_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name in ("a", "b"):  # shards of the same name must not share an index
        (tmp_path / name / ".multimix-index.lock").mkdir(parents=True)
    one = write_tar(tmp_path / "a" / "x.tar", plain_members(3))
    other = write_tar(tmp_path / "b" / "x.tar", plain_members(2, start=3))
    monkeypatch.chdir(tmp_path)
    assert index_of([one, other], cache_dir="cache").label.tolist() == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "cache").rglob("x.tar.index"))) == 2
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr("multimix_pipe.shards.index.build.scan_shard", None)
    assert index_of([one, other], cache_dir=tmp_path / "cache").label.tolist() == [0, 1, 2, 3, 4]


def test_a_writable_folder_keeps_the_index_beside_the_shard_whatever_cache_dir(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(1))
    index_of(path, cache_dir=tmp_path / "cache")
    assert (tmp_path / "x.tar.index").is_file()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("workers", [-1, 0, 1.5])
def test_workers_are_checked_whether_or_not_there_is_work(tmp_path: Path, workers: object) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(1))
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"workers must be an int >= 1; found {workers}"):
            index_of(path, workers=workers)
        index_of(path)


@pytest.mark.parametrize("given", [True, False])
def test_where_nothing_is_writable_the_error_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    (tmp_path / ".multimix-index.lock").mkdir()
    path = write_tar(tmp_path / "x.tar", plain_members(1))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MultiMixError, match=r"cache_dir=.*XDG_CACHE_HOME"):
        index_of(path, cache_dir=tmp_path / "file" if given else None)


def test_the_fingerprint_is_of_the_data_not_of_the_place(tmp_path: Path) -> None:
    def fingerprint(folder: str, members: list[tuple[str, bytes]], name: str = "x.tar") -> str:
        (tmp_path / folder).mkdir()
        return index_of(write_tar(tmp_path / folder / name, members)).fingerprint

    first = fingerprint("a", plain_members(3))
    assert first == fingerprint("b", plain_members(3))
    other_label = plain_members(3)
    other_label[1] = ("0000.cls", b"9")
    assert first != fingerprint("c", other_label)
    assert first != fingerprint("d", plain_members(4))
    assert first != fingerprint("e", plain_members(3), "y.tar")
    assert len(first) == 64


def test_the_fingerprint_never_changes(tmp_path: Path) -> None:
    # images of fixed bytes, so that no encoder's version is in it
    members = [("a.jpg", b"junk"), ("a.cls", b"1"), ("b.jpg", b"other"), ("b.cls", b"2")]
    index = index_of(write_tar(tmp_path / "x.tar", members))
    assert (index.offset.tolist(), index.size.tolist()) == ([512, 2560], [4, 5])
    assert index.fingerprint == "7e283a4d967ffb45f5a01a7e532c25854cdbae59eb425571fa7a53834bd724c7"


def test_odd_files_of_other_projects_never_stop_the_index(tmp_path: Path) -> None:
    folder = os.environ.get("MULTIMIX_ODD")
    if not folder:
        pytest.skip("MULTIMIX_ODD names no folder of odd images")
    members = []
    for number, file in enumerate(sorted(Path(folder).iterdir())):
        if file.suffix != ".tsv":
            members += [(f"{number:03d}.jpg", file.read_bytes()), (f"{number:03d}.cls", b"1")]
    index = index_of(write_tar(tmp_path / "x.tar", members))
    assert len(index) == len(members) // 2
    assert 5 <= np.count_nonzero(index.problem) <= 20
    assert ((index.width > 0) == (index.problem == 0)).all()


def test_label_specifications_do_not_share_an_index_file(tmp_path: Path) -> None:
    members = [("a.jpg", plain_image()), ("a.json", json.dumps({"y/1": 4, "y": 2}).encode())]
    path = write_tar(tmp_path / "x.tar", members)
    assert index_of(path, label="json:y/1").label.tolist() == [4]
    assert index_of(path, label="json:y").label.tolist() == [2]
    assert len(list(tmp_path.glob("*.index"))) == 2
