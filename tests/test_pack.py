"""pack: what goes in comes out, the same bytes every time, and never half."""

from __future__ import annotations

import argparse
import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.images import plain_image
from helpers.tars import write_tar
from multimix_pipe.cli import index as cli_index
from multimix_pipe.cli import pack as cli_pack
from multimix_pipe.cli import verify as cli_verify
from multimix_pipe.errors import ConfigError
from multimix_pipe.shards import Index, open_index
from multimix_pipe.shards.pack import imagefolder, pack
from multimix_pipe.shards.pack.write import PackReport


def command(*words: object) -> int:
    """Run a command of these three as the main program does."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    for module in (cli_pack, cli_index, cli_verify):
        module.register(subparsers)
    args = parser.parse_args([str(word) for word in words])
    status = args.func(args)
    assert isinstance(status, int)
    return status


FILES = {
    f"{name}/{i}.jpg": plain_image((20 + i, 16), colour=10 * i + 3 * j)
    for j, name in enumerate(["cat", "ant"])
    for i in range(9)
}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def quiet_pack(source: Path, out: Path, **options: object) -> PackReport:
    return pack(source, out, progress=False, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """key -> (label, encoded bytes) of all shards in `folder`."""
    index = open_index(folder, progress=False)
    assert not index.problem.any()
    return {index.key(i): (int(index.label[i]), _bytes(index, i)) for i in range(len(index))}


def _bytes(index: Index, i: int) -> bytes:
    data = index.shards[index.shard[i]].read_bytes()
    return data[index.offset[i] : index.offset[i] + index.size[i]]


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


EXPECTED = {name.removesuffix(".jpg"): (int(name.startswith("cat")), data) for name, data in FILES.items()}


def test_every_image_comes_out_unchanged_with_its_class(tmp_path: Path) -> None:
    report = quiet_pack(write_folder(tmp_path / "in", FILES), tmp_path / "out", samples_per_shard=5)
    assert contents(tmp_path / "out") == EXPECTED
    assert report.classes == ("ant", "cat")
    assert (report.samples, report.skipped, report.kept) == (18, (), ())
    assert [shard.name for shard in report.shards] == [f"shard-{i:06d}.tar" for i in range(4)]
    assert report.bytes == sum(map(len, tars(tmp_path / "out").values()))
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {"0": "ant", "1": "cat"}


def test_no_shard_is_longer_than_asked(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", FILES)
    quiet_pack(source, tmp_path / "count", samples_per_shard=7)
    assert Counter(open_index(tmp_path / "count", progress=False).shard.tolist()) == {0: 7, 1: 7, 2: 4}
    size = len(plain_image((20, 16)))
    quiet_pack(source, tmp_path / "bytes", bytes_per_shard=3 * size)
    assert len(tars(tmp_path / "bytes")) >= 18 / 4


@pytest.mark.parametrize("prefix", ["", "top/", "a/b/"])
def test_a_zip_gives_the_same_shards_as_its_folder(tmp_path: Path, prefix: str) -> None:
    quiet_pack(write_folder(tmp_path / "in", FILES), tmp_path / "a")
    extra = {f"__MACOSX/{prefix}cat/._1.jpg": b"x", f"{prefix}.DS_Store": b"x", f"{prefix}cat/.hidden.jpg": b"x"}
    archive = write_zip(tmp_path / "in.zip", {prefix + name: data for name, data in FILES.items()} | extra)
    assert quiet_pack(archive, tmp_path / "b").skipped == ()
    assert tars(tmp_path / "a") == tars(tmp_path / "b")


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", FILES)
    for name, options in {
        "a": {"workers": 1},
        "b": {"workers": 3},
        "seed": {"shuffle_seed": 1},
        "sorted": {"shuffle_seed": None},
    }.items():
        quiet_pack(source, tmp_path / name, samples_per_shard=5, **options)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert tars(tmp_path / "a") != tars(tmp_path / "seed")
    assert list(contents(tmp_path / "sorted")) == sorted(EXPECTED)
    assert contents(tmp_path / "seed") == EXPECTED


def test_the_shuffle_is_pinned(tmp_path: Path) -> None:
    quiet_pack(write_folder(tmp_path / "in", FILES), tmp_path / "out", shuffle_seed=7)
    words = np.random.Philox(key=7).random_raw(len(FILES))
    assert list(contents(tmp_path / "out")) == [sorted(EXPECTED)[i] for i in np.argsort(words, kind="stable")]


def test_the_default_order_mixes_classes(tmp_path: Path) -> None:
    quiet_pack(write_folder(tmp_path / "in", FILES), tmp_path / "out")
    labels = open_index(tmp_path / "out", progress=False).label
    assert 0 < labels[:9].sum() < 9


@pytest.mark.parametrize("as_zip", [False, True])
def test_splits_are_packed_apart_with_the_same_class_ids(tmp_path: Path, as_zip: bool) -> None:
    files = {
        "data/train/b/x.jpg": plain_image(),
        "data/train/c/y.jpg": plain_image(),
        "data/test/a/z.jpg": plain_image(),
    }
    source = write_zip(tmp_path / "in.zip", files) if as_zip else write_folder(tmp_path / "in", files)
    report = quiet_pack(source, tmp_path / "out")
    assert report.classes == ("a", "b", "c")
    assert {key: label for key, (label, _) in contents(tmp_path / "out" / "train").items()} == {"b/x": 1, "c/y": 2}
    assert {key: label for key, (label, _) in contents(tmp_path / "out" / "test").items()} == {"a/z": 0}
    assert [shard.name for shard in report.shards] == ["test-000000.tar", "train-000000.tar"]
    quiet_pack(source, tmp_path / "one", split="train")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["train"]
    with pytest.raises(ConfigError, match=r"found 'val'.*has 'test', 'train'"):
        quiet_pack(source, tmp_path / "none", split="val")


def test_keys_are_unique_and_free_of_dots(tmp_path: Path) -> None:
    names = ["c.d/a.b.jpg", "c.d/a_b.jpg", "c.d/a_b.png", "c.d/deep/er.jpeg", "e/__x.JPG", "ü/ж.jpg"]
    files = {name: plain_image(colour=i, kind="PNG" if "png" in name else "JPEG") for i, name in enumerate(names)}
    quiet_pack(write_folder(tmp_path / "in", files), tmp_path / "out", shuffle_seed=None)
    found = contents(tmp_path / "out")
    assert sorted(found) == sorted(["c_d/a_b", "c_d/a_b_2", "c_d/a_b_3", "c_d/deep/er", "e/__x", "ü/ж"])
    assert Counter(data for _, data in found.values()) == Counter(files.values())


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe/\xe9.jpg")
    try:
        source = write_folder(tmp_path / "in", {name: plain_image()})
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    report = quiet_pack(source, tmp_path / "out")
    assert contents(tmp_path / "out") == {name.removesuffix(".jpg"): (0, plain_image())}
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == {"0": report.classes[0]}


def test_files_that_are_not_packed_are_counted_by_kind_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        **FILES,
        "cat/a.TXT": b"x",
        "ant/b.txt": b"x",
        "loose.jpg": plain_image(),
        "cat/movie.gif": b"x",
        "LICENSE": b"",
    }
    report = quiet_pack(write_folder(tmp_path / "in", files), tmp_path / "out")
    assert report.samples == 18
    assert report.skipped == (
        (2, ".txt", "ant/b.txt"),
        (1, "no extension", "LICENSE"),
        (1, ".gif", "cat/movie.gif"),
        (1, "image in no class folder", "loose.jpg"),
    )
    assert command("pack", tmp_path / "in", tmp_path / "out", "--quiet") == 0
    assert "skipped 5 files: 2 .txt (ant/b.txt), 1 no extension (LICENSE)" in capsys.readouterr().out


@pytest.mark.parametrize("files", [{}, {"a.jpg": b"x"}, {"cat/a.txt": b"x"}], ids=["empty", "flat", "text"])
def test_a_source_without_class_folders_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=r"class/name\.jpg"):
        quiet_pack(write_folder(tmp_path / "in", files), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"class/name\.jpg"):
        quiet_pack(write_zip(tmp_path / "in.zip", files), tmp_path / "out")


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found nothing there"):
        quiet_pack(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ConfigError, match="a file of another kind"):
        quiet_pack(write_folder(tmp_path, {"x.txt": b"?"}) / "x.txt", tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [{"samples_per_shard": 0}, {"bytes_per_shard": 0}, {"max_side": 0}, {"quality": 101}, {"shuffle_seed": -1}],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        quiet_pack(write_folder(tmp_path / "in", FILES), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_pack_leaves_whole_shards_only_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_folder(tmp_path / "in", FILES), tmp_path / "out"
    quiet_pack(source, tmp_path / "whole", samples_per_shard=5)
    read = imagefolder.ImageFolder.read
    calls = iter(range(100))

    def interrupted(self: imagefolder.ImageFolder, image: imagefolder.Image) -> bytes:
        if next(calls) == 12:
            raise KeyboardInterrupt
        return read(self, image)

    monkeypatch.setattr(imagefolder.ImageFolder, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet_pack(source, out, samples_per_shard=5, workers=1)
    monkeypatch.undo()
    whole = tars(tmp_path / "whole")
    assert tars(out) == {name: whole[name] for name in list(whole)[:2]}
    assert not (out / "classes.json").exists()
    (out / "shard-000002.tar.part").write_bytes(b"as a killed process leaves it")
    quiet_pack(source, out, samples_per_shard=5)
    assert tars(out) == whole
    assert (out / "classes.json").exists()
    assert not list(out.glob("*.part"))


def test_shards_of_another_run_are_neither_mixed_nor_overwritten(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "in", FILES), tmp_path / "out"
    quiet_pack(source, out)
    before = tars(out)
    with pytest.raises(ConfigError, match=r"of another run \(shuffle_seed was 0, is 1\)"):
        quiet_pack(source, out, shuffle_seed=1)
    with pytest.raises(ConfigError, match=r"of another run \(.*other images"):
        quiet_pack(write_folder(tmp_path / "other", {"x/y.jpg": plain_image()}), out)
    assert tars(out) == before
    assert (out / "classes.json").exists()
    (tmp_path / "foreign").mkdir()
    write_tar(tmp_path / "foreign" / "a.tar", [])
    with pytest.raises(ConfigError, match=r"a\.tar of another run \(it has no pack\.json"):
        quiet_pack(source, tmp_path / "foreign")


def test_a_file_in_place_of_the_folder_is_an_error_of_this_package(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="required a folder to write shards to"):
        quiet_pack(write_folder(tmp_path / "in", FILES), tmp_path / "out")


def test_a_name_like_a_command_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "in", FILES)
    quiet_pack(Path("in"), Path("pipe:touch ran %d"))
    assert not (tmp_path / "ran").exists()
    assert contents(tmp_path / "pipe:touch ran %d") == EXPECTED


def test_images_are_shrunk_only_where_asked_and_needed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a/big.png": plain_image((200, 100), kind="PNG"),
        "a/small.jpg": plain_image((30, 40)),
        "a/turned.jpg": plain_image((100, 400), exif=exif),
        "a/broken.jpg": b"\xff\xd8 no image",
    }
    report = quiet_pack(write_folder(tmp_path / "in", files), tmp_path / "out", max_side=50, shuffle_seed=None)
    assert report.kept == ("a/broken.jpg",)
    index = open_index(tmp_path / "out", progress=False)
    assert index.keys(range(4)) == ["a/big", "a/broken", "a/small", "a/turned"]
    assert list(zip(index.width.tolist(), index.height.tolist(), strict=True)) == [(50, 25), (0, 0), (30, 40), (12, 50)]
    assert index.orientation.tolist() == [1, 1, 1, 6]
    assert _bytes(index, 2) == files["a/small.jpg"]
    assert _bytes(index, 1) == files["a/broken.jpg"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_plain_mode_can_be_re_encoded(tmp_path: Path, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (200, 200, 200)).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    source = write_folder(tmp_path / "in", {"a/x." + ("jpg" if mode == "CMYK" else "png"): buffer.getvalue()})
    assert quiet_pack(source, tmp_path / "out", quality=95).kept == ()
    index = open_index(tmp_path / "out", progress=False)
    with Image.open(io.BytesIO(_bytes(index, 0))) as image:
        assert image.format == "JPEG"
        assert image.size == (40, 20)
        pixels = np.asarray(image.convert("RGB"), dtype=float)
    assert abs(pixels.mean() - 200) < 12  # "1" is dithered


def test_sixteen_bits_are_kept_rather_than_clipped(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 40), 30_000, np.uint16)).save(buffer, "PNG")
    source = write_folder(tmp_path / "in", {"a/x.png": buffer.getvalue()})
    assert quiet_pack(source, tmp_path / "out", quality=95).kept == ("a/x.png",)
    assert contents(tmp_path / "out") == {"a/x": (0, buffer.getvalue())}


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_folder(tmp_path / "in", {**FILES, "cat/bad.jpg": b"junk"}), tmp_path / "out"
    assert command("pack", source, out, "--samples-per-shard", 10, "--bytes-per-shard", "2G", "--quiet") == 0
    assert "19 samples, 2 shards, 2 classes, 0.1 MB" in capsys.readouterr().out
    assert command("index", out, "--quiet", "--rebuild") == 0
    line, following = capsys.readouterr().out.splitlines()
    assert following == f"next: multimix-pipe verify {out}"
    assert "19 samples, 2 shards, 2 classes" in line
    assert "1 problem: 1 sample where the image header cannot be read (first: shard-00000" in line


@pytest.mark.parametrize("words", [["pack", "a", "b", "--bytes-per-shard", "1T"], ["pack", "a"], ["index"], ["verify"]])
def test_a_wrong_argument_is_one_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(*words)
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [-1, 0])
@pytest.mark.parametrize("name", ["pack", "index", "verify"])
def test_a_number_of_workers_that_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, workers: int
) -> None:
    source = write_folder(tmp_path / "in", {"cat/a.jpg": plain_image()})
    shards = write_tar(tmp_path / "x.tar", [("a.jpg", plain_image()), ("a.cls", b"0")])
    words = (source, tmp_path / "out") if name == "pack" else (shards,)
    with pytest.raises(ConfigError, match=f"workers must be an int >= 1; found {workers}"):
        command(name, *words, "--quiet", "--workers", workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.tar"]
