"""Whatever a shard, an image, a label or an index file holds: no crash, no hang, bounded memory, nothing run, nothing unpacked.

The samples come, or an error of the family that names the shard.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.forks import Forks
from helpers.hostile import (
    extended,
    flip_anywhere,
    generator,
    hostile_image,
    hostile_tar,
    padded,
    pick,
    records,
    resized_header,
    sound_images,
    sparse,
)
from helpers.images import plain_image
from helpers.processes import ROOT, environment
from helpers.tars import BLOCK, header, plain_members, resealed, write_tar
from multimix_pipe import BadSampleError, ConfigError, MultiMixError, ShardError, TrainTransform, open_loader
from multimix_pipe.cli import main
from multimix_pipe.shards import PROBLEMS, Index, list_shards, open_index
from multimix_pipe.shards.header import MAX_BYTES, MAX_PIXELS
from multimix_pipe.shards.index import labels
from multimix_pipe.shards.index.scan import ROW, TOO_MANY_BYTES, TOO_MANY_PIXELS, scan_shard
from multimix_pipe.shards.index.store import load_table, save_table

MB = 2**20
Apart = Callable[..., dict[str, Any]]

TARS, PARTS = 1600, 4
IMAGES = 1200
INDEXES = 800


@contextmanager
def at_most(seconds: int, what: object) -> Iterator[None]:
    """Fail, rather than hang, where something takes longer."""

    def stop(*_: object) -> None:
        raise AssertionError(f"{what} takes more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_names(error: MultiMixError, shard: Path) -> None:
    """Fail where the message does not say which shard it is about."""
    assert shard.name in str(error)


def opened_or_refused(shard: Path, label: str = "cls") -> Index | None:
    """The index of a shard, with samples that can be; None where it is refused with its name."""
    try:
        index = open_index(shard, label=label, progress=False)
    except MultiMixError as error:
        check_names(error, shard)
        return None
    good = index.problem == 0
    assert (index.offset >= 0).all()
    assert (index.size >= 0).all()
    assert (index.offset + index.size <= shard.stat().st_size).all()
    pixels = index.width.astype(np.int64) * index.height
    assert ((index.width > 0) & (index.height > 0) & (pixels <= MAX_PIXELS) & (index.label >= 0))[good].all()
    assert (index.size[good] <= MAX_BYTES).all()
    assert ((index.orientation >= 1) & (index.orientation <= 8)).all()
    return index


def run_or_refused(shard: Path, policy: str) -> bool:
    """Whether an epoch of the torch backend came to its end, rather than to an error that names the shard."""
    settings: dict[str, Any] = {"batch_size": 3, "num_classes": 10, "num_threads": 1, "rank": 0, "world_size": 1}
    settings |= {"transform": TrainTransform(size=8), "backend": "torch", "device": "cpu", "on_bad_sample": policy}
    try:
        with open_loader(shard, exif=True, **settings) as loader:
            for batch in loader:
                assert np.isfinite(batch.images.numpy()).all()
    except MultiMixError as error:
        check_names(error, shard)
        return False
    return True


@pytest.fixture
def run_apart(forks: Forks) -> Apart:
    """Runs an epoch in a process of its own, see programs/hostile_epoch.py: one that crashes fails the test, not pytest."""

    def run(folder: Path, backend: str, **options: object) -> dict[str, Any]:
        options = {"on_bad_sample": "replace", **options}
        found: dict[str, Any] = forks.run("hostile_epoch", folder=str(folder), backend=backend, **options)
        return found

    return run


def shard_of(path: Path, images: list[bytes]) -> Path:
    """A shard with a sample for each image."""
    members = []
    for i, data in enumerate(images):
        members += [(f"{i:05}.jpg", data), (f"{i:05}.cls", b"%d" % (i % 10))]
    return write_tar(path, members)


# tars


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A shard to write, deep in a tree; and a folder beside, which names in it point to."""
    shard, outside = tmp_path / "a" / "b" / "x.tar", tmp_path / "outside"
    shard.parent.mkdir(parents=True)
    outside.mkdir()
    (outside / "canary.jpg").write_bytes(plain_image())
    return shard, outside


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_tar_gives_samples_inside_it_or_is_refused_by_name_and_writes_its_index_alone(
    place: tuple[Path, Path], part: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    shard, outside = place
    root, allowed = outside.parent, {shard, shard.with_name("x.tar.index"), shard.with_name(".multimix-index.lock")}
    before = {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}
    seen: Counter[str] = Counter()
    for case in range(part, TARS, PARTS):
        shard.with_name("x.tar.index").unlink(missing_ok=True)
        draw = generator(1, case)
        hostile_tar(draw, shard, outside)
        with at_most(10, f"case {case}"):
            index = opened_or_refused(shard, pick(draw, ["cls", "cls", "json:y"]))
            seen["refused" if index is None else "indexed"] += 1
            if index is not None:
                seen["run" if run_or_refused(shard, pick(draw, ["raise", "replace"])) else "stopped"] += 1
        for path in set(root.rglob("*")) - allowed - set(before):
            assert path.name == "x.tar.json-y.index", f"case {case} left {path}"
            path.unlink()
    assert {path: path.is_file() and path.read_bytes() for path in before} == before
    assert min(seen[what] for what in ("refused", "indexed", "run", "stopped")) > 5, seen


@pytest.mark.parametrize("kind", [b"1", b"2"], ids=["hard link", "symbolic link"])
def test_a_link_never_leads_out_of_its_shard(place: tuple[Path, Path], kind: bytes) -> None:
    shard, outside = place
    link = header(b"stolen.jpg", 0, kind, str(outside / "canary.jpg").encode())
    shard.write_bytes(link + header(b"stolen.cls", 1) + padded(b"3") + bytes(2 * BLOCK))
    with pytest.raises(ShardError, match="no sample with an image"):
        open_index(shard, progress=False)


LAST = {
    "more digits than tarfile's patterns can bear": extended(b"x", b"1" * 900_000),
    "many such headers": extended(b"x", records((b"size", b"9" * 5000))) * 400,
    "a length that leads through the record byte by byte": extended(b"x", b"0" * 4000 + b"1 " + b"k" * 900_000 + b"="),
    "pax records cut in their last block": extended(b"x", records((b"comment", b"x")))[:-200],
    "a size of pax that passes 64 bits": extended(b"x", records((b"GNU.sparse.realsize", b"9" * 30)))
    + header(b"a.jpg", 0),
    "a size of pax beyond the end": extended(b"x", records((b"GNU.sparse.size", b"99999"))) + header(b"a.jpg", 0),
    "a name of a hundred thousand characters": extended(b"x", records((b"path", b"n" * 100_000))) + header(b"a.jpg", 0),
    "names for all members that are copied for each": b"".join(
        extended(b"g", records(*((b"SCHILY.%d.%d" % (i, j), b"x") for j in range(2000)))) for i in range(20)
    ),
}


@pytest.mark.parametrize("what", LAST)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_header_made_to_take_hours_or_gigabytes_is_refused_at_once(tmp_path: Path, what: str, first: bool) -> None:
    shard, before = tmp_path / "x.tar", b"" if first else header(b"first.jpg", 5) + padded(b"12345")
    block = LAST[what]
    end = b"" if what == "pax records cut in their last block" else header(b"last.jpg", 5) + padded(b"12345")
    shard.write_bytes(before + block + end)
    with at_most(5, what):
        assert opened_or_refused(shard) is None


@pytest.mark.parametrize(
    ("size", "found"), [(3 * BLOCK, "not a whole tar"), (2 * MB, "a header of more than 1,048,576")]
)
def test_a_sparse_map_is_read_to_no_more_than_the_longest_header(tmp_path: Path, size: int, found: str) -> None:
    (tmp_path / "x.tar").write_bytes(sparse(size))
    with pytest.raises(ShardError, match=found):
        open_index(tmp_path / "x.tar", progress=False)


# images


@pytest.fixture(scope="module")
def hostile_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of mutated images, one in three left sound."""
    folder, sound = tmp_path_factory.mktemp("hostile"), sound_images()
    images = []
    for i in range(IMAGES):
        draw, data = generator(2, i), sound[i % len(sound)]
        images.append(hostile_image(draw, data) if draw.integers(3) else data)
    for number in range(3):
        shard_of(folder / f"s{number}.tar", images[number::3])
    return folder


@pytest.mark.parametrize("transform", ["train", "eval"])
def test_mutated_images_are_replaced_and_never_end_a_run(
    hostile_shards: Path, backend: str, transform: str, run_apart: Apart
) -> None:
    ended = run_apart(hostile_shards, backend, transform=transform, exif=transform == "train")
    assert ended["error"] is None
    assert ended["batches"] == -(-IMAGES // 32)
    assert IMAGES // 5 < len(ended["bad"]) < IMAGES * 2 // 3
    assert ended["grown"] < 700 * MB


def test_a_bmp_in_which_dali_finds_no_channels_does_not_enter_it(
    tmp_path: Path, backend: str, run_apart: Apart
) -> None:
    images = [data[:30] + b"\2" + data[31:] if data[:2] == b"BM" else data for data in sound_images() * 4]  # as if RLE4
    shard_of(tmp_path / "x.tar", images)
    ended = run_apart(tmp_path, backend)
    assert ended["error"] is None
    assert ended["batches"] == -(-len(images) // 32)


def bombs() -> list[bytes]:
    """Images that claim billions of pixels, a few hundred bytes each, in all formats and ways to write sides."""
    sides = [(65535, 65535), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (16383, 16383), (2**24, 2**24)]
    return [resized_header(data, *size) for data in sound_images() for size in sides]


def test_bombs_are_known_before_they_are_decoded_and_cost_no_memory(
    tmp_path: Path, backend: str, run_apart: Apart
) -> None:
    sound, images = sound_images(), bombs()
    for folder in ("warm", "bombs"):
        (tmp_path / folder).mkdir()
    shard_of(tmp_path / "warm" / "w.tar", sound)
    shard = shard_of(tmp_path / "bombs" / "x.tar", [*images, *sound])
    index = open_index(shard, progress=False)
    bad = index.problem[: len(images)]
    assert (bad == TOO_MANY_PIXELS).sum() > len(images) // 2
    ended = run_apart(shard.parent, backend, warm=str(tmp_path / "warm"))
    assert ended["error"] is None
    assert ended["grown"] < 300 * MB


def test_a_bomb_that_took_the_place_of_an_indexed_image_is_not_decoded(
    tmp_path: Path, backend: str, run_apart: Apart
) -> None:
    sound = sound_images()
    for folder in ("warm", "late"):
        (tmp_path / folder).mkdir()
    shard_of(tmp_path / "warm" / "w.tar", sound)
    shard = shard_of(tmp_path / "late" / "x.tar", sound)
    index, status = open_index(shard, progress=False), shard.stat()
    data = bytearray(shard.read_bytes())
    for i, image in enumerate(sound):
        start = int(index.offset[i])
        data[start : start + len(image)] = resized_header(image, 20_000, 20_000)[: len(image)]
    start = int(index.offset[-1])
    data[start : start + len(sound[-1])] = sound[-1]  # one is left to train on
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    ended = run_apart(shard.parent, backend, warm=str(tmp_path / "warm"), batch_size=4)
    assert ended["error"] is None or "in a row are bad" in ended["error"]
    assert ended["grown"] < 300 * MB


def test_where_pillows_limit_is_switched_off_ours_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    images = [*bombs(), resized_header(sound_images()[-2], 2**33, 2**33)]  # their product is 0 in 64 bits
    index = opened_or_refused(shard_of(tmp_path / "x.tar", [*images, plain_image()]))
    assert index is not None
    assert index.problem[-1] == 0


def test_an_image_of_more_bytes_than_any_photo_is_neither_read_nor_decoded(tmp_path: Path) -> None:
    shard, huge = tmp_path / "x.tar", MAX_BYTES + 1
    with open(shard, "wb") as file:  # with holes: it takes no room
        file.write(header(b"a.jpg", huge) + b"RIFF\0\0\0\0WEBPVP8 ")
        file.seek(BLOCK + huge + -huge % BLOCK)
        file.write(
            header(b"a.cls", 1) + padded(b"3") + header(b"b.jpg", 3 * BLOCK) + plain_image().ljust(3 * BLOCK, b"\0")
        )
        file.write(header(b"b.cls", 1) + padded(b"3") + bytes(2 * BLOCK))
    index = open_index(shard, progress=False)
    assert index.problem.tolist() == [TOO_MANY_BYTES, 0]
    assert "bytes" in PROBLEMS[TOO_MANY_BYTES]
    assert run_or_refused(shard, "replace")


def test_a_key_that_is_no_text_does_not_end_the_commands(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", [("\udcff.jpg", b"broken"), ("\udcff.cls", b"1"), *plain_members(1)])
    command = [sys.executable, "-m", "multimix_pipe", "verify", str(shard), "--quiet"]
    variables = environment(PYTHONIOENCODING="utf-8:strict")
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert r"x.tar : \udcff: " in ended.stdout


ESCAPING = "\x1b[2J\x1b]0;owned\x07"


def test_a_key_does_not_control_a_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [(f"{ESCAPING}.jpg", b"broken"), (f"{ESCAPING}.cls", b"1")]
    shard = write_tar(tmp_path / "x.tar", [*broken, *plain_members(3)])
    settings: dict[str, Any] = {"batch_size": 2, "num_classes": 10, "backend": "torch", "device": "cpu"}
    with pytest.raises(BadSampleError, match=r"x\.tar : \\x1b\[2J") as caught:
        list(open_loader(shard, **settings))
    with open_loader(shard, on_bad_sample="replace", **settings) as loader:
        list(loader)
        (name,) = loader.bad_samples
    assert main(["verify", str(shard), "--quiet", "--write-bad", str(tmp_path / "bad.txt")]) == 1
    shown = [str(caught.value), caplog.text, *capsys.readouterr()]
    assert any(r"\x1b[2J" in text for text in shown[1:])
    assert not any(c in text for text in shown for c in "\x1b\x07")
    (hint,) = re.findall(r"exclude=(\[.*?'\])", str(caught.value))
    for excluded in ([name], tmp_path / "bad.txt", ast.literal_eval(hint)):
        with open_loader(shard, exclude=excluded, **settings) as loader:
            assert len(loader.context.plan.samples) == 3


# labels

LABELS: list[tuple[str, bytes, str | None]] = [
    ("cls", b"3" * 5_000_000, "not an integer"),
    ("cls", b"3" + b" " * 63, None),
    ("cls", b"3" + b" " * 64, "not an integer"),
    ("cls", b"0x3", "not an integer"),
    ("cls", b"nan", "not an integer"),
    ("cls", b"\0\xff", "not an integer"),
    ("json:y", b'{"y": ' + b"1" * 10_000 + b"}", "JSON object"),
    ("json:y", b'{"y": ' + b"1" * 4_000 + b"}", "64 bits"),
    ("json:y", b'{"y": NaN}', "not an integer"),
    ("json:y", b'{"y": Infinity}', "not an integer"),
    ("json:y", b'{"y": 3.0}', "not an integer"),
    ("json:y", b'{"y": 1e3}', "not an integer"),
    ("json:y", b'{"y": false}', "not an integer"),
    ("json:y", b'{"y": null}', "not an integer"),
    ("json:y", b'{"y": [3]}', "not an integer"),
    ("json:y", b'{"y": -0}', None),
    ("json:y", b'{"y": "x", "y": 3}', None),
    ("json:y", b'{"y": 3, "y": "x"}', "not an integer"),
    ("json:y", b'{"y": 3, "x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "JSON object"),
    ("json:y", b'{"y": 3, "x": ' + b'{"a": ' * 200_000, "JSON object"),
    ("json:y", b'{"y": 3, "x": "' + b"x" * (labels._MAX_JSON) + b'"}', "JSON object"),
    ("json:y", b'\xff\xfe{"y": 3}', "JSON object"),
    ("json:y", b'{"\\ud800": 1, "y": 3}', None),
    ("json:y", b'{"y": 3}\0', "JSON object"),
    ("json:y", b"y", "JSON object"),
]


@pytest.mark.parametrize(("label", "text", "reason"), LABELS, ids=range(len(LABELS)))
def test_a_hostile_label_is_a_sample_with_a_problem(
    tmp_path: Path, label: str, text: bytes, reason: str | None
) -> None:
    member = ("a.cls" if label == "cls" else "a.json", text)
    with at_most(10, "a label"):
        index = open_index(
            write_tar(tmp_path / "x.tar", [("a.jpg", plain_image()), member]), label=label, progress=False
        )
    if reason is None:
        assert index.problem.tolist() == [0]
    else:
        assert index.label.tolist() == [-1]
        assert reason in PROBLEMS[int(index.problem[0])]


def test_no_bytes_of_a_label_are_more_than_a_problem(tmp_path: Path) -> None:
    members, draw = [], generator(3)
    for i in range(600):
        text = flip_anywhere(
            draw, bytearray(pick(draw, [b'{"y": 12, "x": [1, {"z": null}]}', b"123", b'{"y": -1.5e3}']))
        )
        members += [(f"{i}.jpg", b""), (f"{i}.json", bytes(text)), (f"{i}.cls", bytes(text))]
    shard = write_tar(tmp_path / "x.tar", members)
    for label in ("cls", "json:y"):
        assert len(open_index(shard, label=label, progress=False)) == 600


def test_labels_of_gigabytes_take_the_memory_of_one(tmp_path: Path) -> None:
    shard, size = tmp_path / "x.tar", labels._MAX_JSON
    with open(shard, "wb") as file:  # with holes: it takes no room
        for i in range(20):
            file.write(header(b"%d.json" % i, size))
            file.seek(size, os.SEEK_CUR)
        file.write(bytes(2 * BLOCK))
    tracemalloc.start()
    try:
        scan_shard(shard, "json:y")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * size


# index files


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A shard of sound samples beside its index."""
    shard = write_tar(tmp_path / "x.tar", plain_members(10))
    open_index(shard, progress=False)
    return shard


def test_a_mutated_index_whose_checksum_holds_never_leads_out_of_its_shard(
    indexed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    file = indexed.with_name("x.tar.index")
    good, seen = file.read_bytes(), Counter[str]()
    rows = good.index(b"\n", 9) + 1
    for case in range(INDEXES):
        draw, data = generator(4, case), bytearray(good)
        for _ in range(draw.integers(1, 4)):
            if draw.integers(3):  # in the rows: most mutations of the head are refused alike
                at = rows + int(draw.integers(10 * ROW.itemsize))
                data[at : at + 1] = pick(draw, [draw.bytes(1), b"\0", b"\xff", b"\x80"])
            elif draw.integers(2):
                flip_anywhere(draw, data)
            else:
                data[int(draw.integers(9, len(data))) :] = draw.bytes(int(draw.integers(300)))
        file.write_bytes(resealed(bytes(data)))
        with at_most(10, f"case {case}"):
            index = opened_or_refused(indexed)
            assert index is not None
            taken = file.read_bytes() != good
            seen["taken" if taken else "built again"] += 1
            if taken:
                run_or_refused(indexed, pick(draw, ["raise", "replace"]))
    assert seen["taken"] > 50, seen
    assert seen["built again"] > 50, seen


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", -1),
        ("samples", 1e1),
        ("samples", [10]),
        ("without_image", "7"),
        ("without_image", None),
        ("extensions", [["jpg", "x"]]),
        ("extensions", {"jpg": None}),
        ("extensions", 3),
        ("extensions", [3]),
        ("shard_size", 10.5),
        ("mtime_ns", "0"),
    ],
)
def test_an_index_with_a_hostile_head_is_built_again(indexed: Path, field: str, value: object) -> None:
    file = indexed.with_name("x.tar.index")
    good = file.read_bytes()
    head, rest = good[9:].split(b"\n", 1)
    file.write_bytes(resealed(b" " * 9 + json.dumps({**json.loads(head), field: value}).encode() + b"\n" + rest))
    assert len(open_index(indexed, progress=False)) == 10
    assert file.read_bytes() == good


FORGED = [
    *[("width", value) for value in (0, -1, 2**31 - 1, 20_000)],
    *[("height", value) for value in (0, -1, 2**31 - 1)],
    *[("orientation", value) for value in (0, 9, 200, 255)],
    *[("label", value) for value in (-1, -(2**63))],
]


@pytest.mark.parametrize(("column", "value"), FORGED)
def test_an_index_with_values_that_no_scan_writes_is_built_again(indexed: Path, column: str, value: int) -> None:
    file = indexed.with_name("x.tar.index")
    good, table = file.read_bytes(), load_table(indexed, "cls", None)
    assert table is not None
    rows = table.rows.copy()
    rows[column][3] = value
    if (column, value) == ("width", 20_000):
        rows["height"][3] = 20_000
    save_table(file, replace(table, rows=rows), "cls")
    assert getattr(open_index(indexed, progress=False), column)[3] != value
    assert file.read_bytes() == good


def test_an_index_that_is_no_file_or_has_no_end_is_built_again(indexed: Path) -> None:
    file = indexed.with_name("x.tar.index")
    file.unlink()
    os.mkfifo(file)
    with at_most(5, "a pipe in the place of an index"):
        assert len(open_index(indexed, progress=False)) == 10
    assert file.is_file()
    os.truncate(file, 2**33)
    with at_most(5, "an index of gigabytes"):
        assert len(open_index(indexed, progress=False)) == 10
    assert file.stat().st_size < indexed.stat().st_size


LARGEST = {"orientation": 8}


@pytest.mark.parametrize("exif", [False, True], ids=["as stored", "upright"])
def test_an_index_that_lies_gives_bad_samples_and_no_crash(
    tmp_path: Path, hostile_shards: Path, backend: str, exif: bool, run_apart: Apart
) -> None:
    folder = shutil.copytree(hostile_shards, tmp_path / "forged")
    draw = generator(5)
    for shard in sorted(folder.glob("*.tar")):
        open_index(shard, progress=False)
        table = load_table(shard, "cls", None)
        assert table is not None
        rows = table.rows.copy()
        for row in rows[: len(rows) // 2]:
            column = pick(draw, ["offset", "size", "width", "height", "orientation"])
            row[column] = min(
                max(1, int(row[column]) + pick(draw, [-600, -3, -1, 1, 3, 600])), LARGEST.get(column, 2**20)
            )
        # what the index knew to be bad comes to the decoders too
        rows["problem"] = np.where(draw.integers(4, size=len(rows)) == 0, 0, rows["problem"])
        for side in ("width", "height"):
            rows[side] = np.clip(rows[side], 1, 10_000)
        rows["label"], rows["orientation"] = rows["label"] % 10, (rows["orientation"] - 1) % 8 + 1
        rows["size"] = np.minimum(rows["size"], shard.stat().st_size - rows["offset"])
        save_table(shard.with_name(shard.name + ".index"), replace(table, rows=rows), "cls")
        assert load_table(shard, "cls", None) is not None, "the forged index is refused, and nothing is tested"
    ended = run_apart(folder, backend, exif=exif)
    assert ended["error"] is None
    assert ended["grown"] < 700 * MB


# code


@pytest.mark.parametrize(
    "source",
    [
        "pipe:touch ran",
        "PIPE:touch ran",
        "Pipe:touch ran",
        "{pipe,PIPE}:touch ran",
        "{x.tar,pipe:touch ran}",
        "p{i,I}pe:touch ran{0..2}",
        ["x.tar", "pipe:touch ran"],
        ["pipe:touch ran", "x.tar"],
        Path("pipe:touch ran"),
    ],
)
def test_a_pipe_is_refused_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    write_tar(tmp_path / "x.tar", plain_members(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run shell commands and are refused"):
        list_shards(source)
    with pytest.raises(ConfigError, match="run shell commands and are refused"):
        open_loader(source, batch_size=1, num_classes=10)
    assert not list(tmp_path.glob("ran*"))


def test_members_that_other_loaders_unpickle_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = b"cos\nmkdir\n(S'ran'\ntR."
    members = [("a.jpg", plain_image()), ("a.cls", b"1"), ("b.jpg", plain_image()), ("b.cls", runs)]
    for extension in ("pyd", "pkl", "pickle", "pth", "npy", "npz", "json"):
        members += [(f"{key}.{extension}", runs) for key in "ab"]
    shard = write_tar(tmp_path / "x.tar", members)
    monkeypatch.chdir(tmp_path)
    index = open_index(shard, progress=False)
    assert index.label.tolist() == [1, -1]
    assert run_or_refused(shard, "replace")
    assert not (tmp_path / "ran").exists()


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"extract", "extractall", "unpack_archive", "popen", "system"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}  # a network's eval() and re.compile() are others


def found_in(source: str) -> set[str]:
    """What a module uses that runs code out of data, runs a shell, or unpacks an archive."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found |= {part for name in names for part in name.split(".") if part in FORBIDDEN_MODULES}
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN_CALLS or (name in BUILT_IN and owner in ("", "builtins")):
            found.add(name)
        if options.get("shell", "False") != "False" or options.get("allow_pickle", "False") != "False":
            found.add("shell" if "shell" in options else "allow_pickle")
        if (owner, name) == ("torch", "load") and options.get("weights_only") != "True":
            found.add("torch.load")
    return found


def test_no_module_can_run_code_out_of_data() -> None:
    files = [path for folder in ("multimix_pipe", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 60
    found = {str(path.relative_to(ROOT)): found_in(path.read_text(encoding="utf-8")) for path in files}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("eval(x)", "eval"),
        ("builtins.exec(x)", "exec"),
        ("tar.extractall(folder)", "extractall"),
        ("os.system(x)", "system"),
        ("subprocess.run(x, shell=True)", "shell"),
        ("np.load(x, allow_pickle=True)", "allow_pickle"),
        ("torch.load(x)", "torch.load"),
        ("torch.load(x, weights_only=False)", "torch.load"),
    ],
)
def test_the_search_finds_what_is_planted(line: str, what: str) -> None:
    assert found_in(f"def f(x):\n    {line}\n") == {what}
    assert found_in("re.compile(x)\ntorch.load(x, weights_only=True)\nsubprocess.run(x, shell=False)") == set()
