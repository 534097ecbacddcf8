"""A sample with a label and no usable image is a bad sample, with all that this means; one odd member costs one sample."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image, features

from helpers.batches import Open
from helpers.images import plain_image
from helpers.tars import index_of, plain_members, write_tar
from multimix_pipe import BadSampleError, ConfigError, ShardError
from multimix_pipe.cli import main
from multimix_pipe.shards.pack import imagefolder, pack
from multimix_pipe.verify import verify

GOOD = plain_members(4)
IMAGE = plain_image()


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


LOST = {
    "a dot in the key": ([("Track 2.0.jpg", IMAGE), ("Track 2.0.cls", b"1")], "Track 2", ".0.jpg, .0.cls; a key ends at the"),
    "views of one label": ([("x.left.jpg", IMAGE), ("x.right.jpg", IMAGE), ("x.cls", b"1")], "x", ".left.jpg, .right.jpg, .cls"),
    "another member": ([("x.npy", b"?"), ("x.cls", b"1")], "x", "there is no image; found the members .npy, .cls"),
    "a label that is none": ([("x.cls", b"cat")], "x", "there is no image; found the members .cls"),
    "a GIF": ([("x.gif", encoded("GIF")), ("x.cls", b"1")], "x", "GIF is not read"),
    "a GIF without a label": ([("x.gif", encoded("GIF"))], "x", "GIF is not read"),
    "a GIF named jpg": ([("x.jpg", encoded("GIF")), ("x.cls", b"1")], "x", "GIF is not read"),
    "a TIFF": ([("x.tiff", encoded("TIFF")), ("x.cls", b"1")], "x", "TIFF is not read"),
    "a web page": ([("x.jpg", b"\n<!DOCTYPE html><html>"), ("x.cls", b"1")], "x", "an HTML page is not read"),
    "two images": ([("x.jpg", IMAGE), ("x.JPG", IMAGE), ("x.cls", b"1")], "x", "found two members .jpg"),
    "two labels": ([("x.jpg", IMAGE), ("x.cls", b"1"), ("x.cls", b"2")], "x", "found two members .cls"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_it_is_counted_named_and_replaced(
    tmp_path: Path, opened: Open, what: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    members, key, reason = LOST[what]
    path = write_tar(tmp_path / "x.tar", [*GOOD, *members])
    options = {"num_classes": 4, "batch_size": 5, "backend": "torch"}
    (bad,) = verify(path, backend="torch", progress=False).bad
    assert bad.name == f"x.tar : {key}"
    assert reason in bad.reason
    assert main(["verify", str(path), "--quiet", "--backend", "torch"]) == 1
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        loader = opened(path, on_bad_sample="replace", **options)
    assert f"1 of 5 samples cannot be used, the first: x.tar : {key}: " in caplog.text
    assert reason in caplog.text
    assert len(next(iter(loader)).labels) == 5
    assert list(loader.bad_samples) == [f"x.tar : {key}"]
    with pytest.raises(BadSampleError, match=r"1 bad samples .*max_bad=0"):
        opened(path, on_bad_sample="replace", max_bad=0, **options)
    with pytest.raises(BadSampleError, match=f"x.tar : {key}: "):
        next(iter(opened(path, **options)))
    assert len(opened(path, exclude=[f"x.tar : {key}"], **options)) == 1


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")
def test_a_good_avif_says_that_avif_is_not_read(tmp_path: Path) -> None:
    index = index_of(write_tar(tmp_path / "x.tar", [*GOOD, ("x.jpg", encoded("AVIF")), ("x.cls", b"1")]))
    assert index.reason(4) == "AVIF is not read; convert it to JPEG, PNG or WebP"


def test_a_shard_whose_keys_all_have_dots_says_so(
    tmp_path: Path, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [(f"Track {i}.0.{kind}", data) for i in range(3) for kind, data in (("jpg", IMAGE), ("cls", b"1"))]
    path = write_tar(tmp_path / "x.tar", members)
    advice = "found 3 .0.jpg, 3 .0.cls. A key ends at the first dot of a file name, so .0.jpg is no image"
    with pytest.raises(ShardError, match=advice):
        opened(path, num_classes=2, batch_size=2, backend="torch")
    assert main(["index", str(path), "--quiet"]) == 2
    assert f"error: {path}: no sample with an image" in (text := capsys.readouterr().err)
    assert advice in text


def test_images_that_are_not_read_say_what_to_do(
    tmp_path: Path, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.tif", encoded("TIFF")) for i in range(2)])
    advice = "TIFF is not read; convert it to JPEG, PNG or WebP"
    assert main(["index", str(path), "--quiet"]) == 1
    assert advice in capsys.readouterr().out
    with pytest.raises(ConfigError, match=advice):
        opened(path, num_classes=2, batch_size=2, backend="torch")


@pytest.mark.parametrize("extension", ["jfif", "jpe", "bmp", "ppm", "pgm"])
def test_images_of_rare_extensions_are_read(tmp_path: Path, extension: str) -> None:
    data = encoded({"bmp": "BMP", "ppm": "PPM", "pgm": "PPM"}.get(extension, "JPEG"))
    index = index_of(write_tar(tmp_path / "x.tar", [(f"a.{extension}", data), ("a.cls", b"1")]))
    assert (index.width.tolist(), index.problem.tolist()) == ([20], [0])


@pytest.mark.parametrize(
    "extra", [[("README", b"?")], [("notes.txt", b"?")], [("y.seg.png", IMAGE)], [("meta.json", b"{}")]]
)
def test_what_is_no_sample_is_none(tmp_path: Path, extra: list[tuple[str, bytes]]) -> None:
    index = index_of(write_tar(tmp_path / "x.tar", [*GOOD, *extra]))
    assert len(index) == 4
    assert not index.problem.any()


# links and sparse files


def linked(path: Path, kind: bytes, *, images: bool = True) -> Path:
    """The shard of GOOD with a link "x.jpg" to its first image, and a label for it."""
    with tarfile.open(path, "w") as tar:
        for name, data in [*(GOOD if images else ()), ("x.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname = kind, "0000.jpg"
        tar.addfile(info)
    return path


def test_a_hard_link_is_the_member_that_it_names(tmp_path: Path, opened: Open) -> None:
    path = linked(tmp_path / "x.tar", tarfile.LNKTYPE)
    index = index_of(path)
    assert (index.offset[4], index.size[4], index.label[4]) == (index.offset[0], index.size[0], 1)
    assert not index.problem.any()
    options = {"num_classes": 4, "batch_size": 5, "backend": "torch", "shuffle": "none", "mix": None}
    assert opened(path, **options).index.key(4) == "x"
    assert not verify(path, backend="torch", progress=False).bad


def test_a_symbolic_link_is_said_to_be_one(tmp_path: Path) -> None:
    index = index_of(linked(tmp_path / "x.tar", tarfile.SYMTYPE))
    assert index.reason(4) == "there is no image; found the members .cls, .jpg (symbolic link)"
    with pytest.raises(ShardError, match=r"no sample with an image.*1 \.jpg \(symbolic link\)"):
        index_of(linked(tmp_path / "y.tar", tarfile.SYMTYPE, images=False))


def test_a_hard_link_to_nothing_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"1 \.jpg \(hard link to nothing\)"):
        index_of(linked(tmp_path / "x.tar", tarfile.LNKTYPE, images=False))


def test_gnu_tars_own_archives_cost_nothing_but_what_they_cannot_hold(tmp_path: Path) -> None:
    if shutil.which("tar") is None or b"GNU" not in subprocess.run(["tar", "--version"], capture_output=True).stdout:
        pytest.skip("no GNU tar")
    source = tmp_path / "in"
    source.mkdir()
    for name, data in GOOD:
        (source / name).write_bytes(data)
    with open(source / "log.bin", "wb") as file:  # a hole, so that it is stored sparse
        file.truncate(2**20)
        file.seek(2**20 - 1)
        file.write(b"x")
    (source / "y.jpg").hardlink_to(source / "0001.jpg")
    (source / "y.cls").write_bytes(b"3")
    for options in (["--sparse"], [f"--listed-incremental={tmp_path / 'state'}"], ["--blocking-factor=4096"]):
        path = tmp_path / "x.tar"
        subprocess.run(["tar", "-cf", path, *options, "-C", source, "."], check=True)
        subprocess.run(["tar", "-rf", path, "-C", source, "./log.bin"], check=True)
        index = index_of(path)
        assert sorted(index.keys(range(len(index)))) == ["./0000", "./0001", "./0002", "./0003", "./y"], options
        assert sorted(index.label.tolist()) == [0, 1, 2, 3, 3]
        assert not index.problem.any()


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_a_sparse_file_with_a_hole_longer_than_the_archive_costs_no_sample(tmp_path: Path, format: str) -> None:
    if shutil.which("tar") is None or b"GNU" not in subprocess.run(["tar", "--version"], capture_output=True).stdout:
        pytest.skip("no GNU tar")
    for name, data in GOOD:
        (tmp_path / name).write_bytes(data)
    with open(tmp_path / "a.bin", "wb") as file:
        file.truncate(2**22)
        file.write(b"x")
    names = ["a.bin", *(name for name, _ in GOOD)]
    command = ["tar", "-cf", tmp_path / "x.tar", "--sparse", f"--format={format}", "-C", tmp_path, *names]
    subprocess.run(command, check=True)
    index = index_of(tmp_path / "x.tar")
    assert sorted(index.label.tolist()) == [0, 1, 2, 3]
    assert not index.problem.any()
    assert not index.damage


# pack that did not finish


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Source and folder of a `pack` that was interrupted after two shards of five."""
    source = tmp_path / "in"
    for i in range(18):
        (source / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (source / f"class{i % 2}" / f"{i}.jpg").write_bytes(IMAGE)
    read, calls = imagefolder.ImageFolder.read, iter(range(100))

    def stop(self: imagefolder.ImageFolder, image: imagefolder.Image) -> bytes:
        if next(calls) == 12:
            raise KeyboardInterrupt
        return read(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(imagefolder.ImageFolder, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", samples_per_shard=5, workers=1, progress=False)
    return source, tmp_path / "out"


def test_an_interrupted_pack_is_noticed(
    interrupted: tuple[Path, Path], opened: Open, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source, out = interrupted
    found = r"`multimix-pipe pack` did not finish: required 18 images, found 10 in its shards"
    options = {"num_classes": 2, "batch_size": 2, "backend": "torch"}
    for shards in (out, out / "shard-000000.tar"):
        with pytest.raises(ShardError, match="did not finish"):
            opened(shards, **options)
    with pytest.raises(ShardError, match=found):
        opened(out, **options)
    assert main(["index", str(out), "--quiet"]) == 2
    assert "did not finish" in capsys.readouterr().err
    report = verify(out, backend="torch", progress=False)
    assert (report.shards, report.samples) == (2, 10)
    assert [shard.shard for shard in report.bad_shards] == [str(out)]
    capsys.readouterr()
    assert main(["verify", str(out), "--quiet"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("10 samples, 0 bad in 2 shards; 1 folder incomplete; decoded by ")
    assert lines[2].startswith("next: complete the data as listed, or use what is there")
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        assert len(opened(out, on_bad_sample="replace", **options).index) == 10
    assert "did not finish" in caplog.text
    pack(source, out, samples_per_shard=5, progress=False)
    assert len(opened(out, **options).index) == 18


def test_a_copy_without_some_shards_is_noticed_where_the_folder_is_named(tmp_path: Path, opened: Open) -> None:
    for i in range(6):
        (tmp_path / "in" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"class{i % 2}" / f"{i}.jpg").write_bytes(IMAGE)
    pack(tmp_path / "in", tmp_path / "out", samples_per_shard=2, progress=False)
    options = {"num_classes": 2, "batch_size": 2, "backend": "torch"}
    assert json.loads((tmp_path / "out/pack.json").read_text())["shards"] == 3
    opened(tmp_path / "out", **options)
    (tmp_path / "out/shard-000001.tar").unlink()
    with pytest.raises(ShardError, match="required the 3 shards that `multimix-pipe pack` wrote, found 2"):
        opened(tmp_path / "out", **options)
    assert [bad.shard for bad in verify(tmp_path / "out", backend="torch", progress=False).bad_shards] == [
        str(tmp_path / "out")
    ]
    assert len(opened(tmp_path / "out/shard-00000{0,2}.tar", **options).index) == 4
    assert not verify(tmp_path / "out/shard-00000{0,2}.tar", backend="torch", progress=False).bad_shards


def test_beside_a_damaged_shard_an_interrupted_pack_is_listed_once(interrupted: tuple[Path, Path]) -> None:
    out = interrupted[1]
    (out / "shard-000002.tar").write_bytes(b"no tar" * 200)
    bad = verify(out, backend="torch", progress=False).bad_shards
    assert [shard.shard for shard in bad] == [str(out / "shard-000002.tar"), str(out)]
    assert "required 18 images, found 10 in its shards" in bad[1].reason


def test_a_pack_of_a_version_that_left_no_mark_of_its_end_is_judged_by_what_is_there(
    tmp_path: Path, opened: Open
) -> None:
    for i in range(6):
        (tmp_path / "in" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"class{i % 2}" / f"{i}.jpg").write_bytes(IMAGE)
    out = tmp_path / "out"
    pack(tmp_path / "in", out, samples_per_shard=2, progress=False)
    run = json.loads((out / "pack.json").read_text())
    del run["shards"]
    (out / "pack.json").write_text(json.dumps(run))
    options = {"num_classes": 2, "batch_size": 2, "backend": "torch"}
    assert len(opened(out, **options).index) == 6
    assert len(opened(out / "shard-000000.tar", **options).index) == 2
    names = (out / "classes.json").read_bytes()
    (out / "classes.json").unlink()  # as after an interrupt behind the last shard
    with pytest.raises(
        ShardError, match=r"did not finish: required classes\.json, .* all 6 images are there; run it again"
    ):
        opened(out, **options)
    (out / "classes.json").write_bytes(names)
    (out / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match="required the 6 images that `multimix-pipe pack` wrote, found 4"):
        opened(out, **options)
