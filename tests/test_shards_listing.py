"""What names shards, and what is refused by name."""

from __future__ import annotations

import base64
import http.server
import re
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from helpers.hostile import extended, records
from helpers.images import plain_image
from helpers.tars import plain_members, write_tar
from multimix_pipe.cli import main
from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards import list_shards, open_index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in (2, 0, 1):
        write_tar(tmp_path / f"train-{i:06d}.tar", plain_members(1, start=i))
    (tmp_path / "train-000000.tar.index").touch()
    (tmp_path / "classes.json").touch()
    return tmp_path


def names(shards: tuple[Path, ...]) -> list[str]:
    assert all(shard.is_absolute() for shard in shards)
    return [shard.name for shard in shards]


ALL = ["train-000000.tar", "train-000001.tar", "train-000002.tar"]


@pytest.mark.parametrize("pattern", ["", "train-*", "*.tar", "train-{000000..000002}.tar", "train-00000[012].tar"])
def test_folder_glob_and_braces_name_the_same_shards_in_order(folder: Path, pattern: str) -> None:
    assert names(list_shards(f"{folder}/{pattern}")) == ALL


def test_a_list_keeps_its_order_and_takes_paths(folder: Path) -> None:
    shards = list_shards([folder / "train-000002.tar", f"{folder}/train-{{000000..000001}}.tar"])
    assert names(shards) == [ALL[2], ALL[0], ALL[1]]


def test_a_relative_path_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list_shards("train-000001.tar") == (folder / "train-000001.tar",)


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "a[1]{x}"
    odd.mkdir()
    shard = write_tar(odd / "b{0..3}*.tar", plain_members(1))
    assert list_shards(shard) == (shard,)
    assert list_shards(odd) == (shard,)


@pytest.mark.parametrize("pattern", ["absent.tar", "absent-*.tar", "train-{000001..000007}.tar"])
def test_missing_shards_are_named(folder: Path, pattern: str) -> None:
    with pytest.raises(ShardError, match=r"absent|train-000003\.tar, .*train-000004\.tar"):
        list_shards(f"{folder}/{pattern}")


def test_a_folder_without_tars_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ShardError, match=r"required \*\.tar.*found 1 other file, .*a\.tar\.gz"):
        list_shards(tmp_path)


@pytest.mark.parametrize("image", ["a.jpg", "cat/a.png", "train/cat/a.JPEG"])
def test_a_folder_of_images_says_how_to_make_shards(tmp_path: Path, image: str) -> None:
    source = tmp_path / "my [photos]"
    (source / image).parent.mkdir(parents=True)
    (source / image).touch()
    what = "1 other file" if image == "a.jpg" else "1 folder"
    with pytest.raises(
        ShardError, match=f"found {what}, such as .*with multimix-pipe pack '{re.escape(str(source))}' OUT, and"
    ):
        list_shards(source)


def test_a_folder_in_which_pack_left_no_shard_says_so(tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text('{"images": 3}')
    with pytest.raises(
        ShardError, match=r"`multimix-pipe pack` was run there, and no shard of it is left; run it again$"
    ):
        list_shards(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pipe:cat a.tar", "shell commands"),
        ("file:///tmp/a.tar", "give the path, without file://"),
        ("http://localhost/a.tar", "cache_dir"),
        ([], "empty list"),
        ("", "empty string"),
        (["a.tar", ""], "empty string"),
        ("a-{0..3.tar", "brace pattern|missing"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(source: str | list[str], message: str) -> None:
    with pytest.raises((ConfigError, ShardError), match=message):
        list_shards(source)


@pytest.mark.parametrize("source", [None, 3, b"a.tar", {"a.tar"}, [None], ["a.tar", b"b.tar"]])
def test_what_is_no_name_is_refused_with_what_is_required(
    source: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_tar(folder / "a.tar", plain_members(1)).parent)
    with pytest.raises(ConfigError, match=r"shards must be a path, glob, .*or a list of those; found .*(None|3|tar)"):
        list_shards(source)  # type: ignore[arg-type]


def test_a_folder_of_splits_names_those_with_shards(tmp_path: Path) -> None:
    root = tmp_path / "da[t]a"
    for name in ("val", "train", "notes"):
        (root / name).mkdir(parents=True)
    write_tar(root / "train" / "a.tar", plain_members(1))
    write_tar(root / "val" / "a.tar", plain_members(1))
    with pytest.raises(ShardError, match=r"found none there but some in '\S*/train', '\S*/val'; give one"):
        list_shards(root)


def test_a_link_to_nothing_is_not_passed_over(folder: Path) -> None:
    write_tar(folder / "a.tar", plain_members(1))
    (folder / "b.tar").symlink_to(folder / "gone")
    for source in (folder, str(folder / "*.tar")):
        with pytest.raises(ShardError, match=r"1 shard is a broken link or not a regular file: \S*/b\.tar"):
            list_shards(source)


def test_pipes_run_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list_shards(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


def test_a_shard_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train-000001\.tar twice"):
        list_shards([folder, folder / "train-000001.tar"])


def _tar_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_tar(Path(folder, "x.tar"), plain_members(40)).read_bytes()


WHOLE = _tar_bytes()
ODD: dict[str, tuple[str | None, bytes]] = {
    "short.tar": ("100000", WHOLE[:600]),
    "odd.tar": ("a few", WHOLE),
    "nothing-said.tar": (None, WHOLE),
    "login.tar": ("", b"<!DOCTYPE html><title>Please log in</title>" + b" " * 2000),
    "empty.tar": ("", b""),
    "zeros.tar": ("", bytes(20_480)),
    "huge-header.tar": ("", extended(b"x", records((b"comment", b"x" * 2**21))) + WHOLE),
    "cut.tar": (None, WHOLE[: len(WHOLE) // 2]),
    "cut-between-members.tar": (None, WHOLE[:2560]),
}
"""What the server sends by name: Content-Length ("" for the right one, None for none) and bytes."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        name = urlsplit(self.path).path.strip("/")
        if name in ODD:
            length, data = ODD[name]
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        elif name == "leaking.tar":
            self.send_error(403, f"Forbidden for {self.path}")
        elif (
            name == "private.tar" and self.headers["Authorization"] != "Basic " + base64.b64encode(b"me:p@ss").decode()
        ):
            self.send_error(401)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_remote_shards_are_downloaded_once_and_read_as_local_ones(server: str, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pattern = server + "/train-{000000..000002}.tar"
    shards = list_shards(pattern, cache, progress=False)
    assert names(shards) == ALL
    assert [shard.read_bytes() for shard in shards] == [(folder / name).read_bytes() for name in ALL]
    (folder / ALL[0]).unlink()
    assert list_shards(pattern, cache, progress=False) == shards
    assert open_index(pattern, cache_dir=cache, progress=False).label.tolist() == [0, 1, 2]
    assert not list(cache.rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("short.tar", "is incomplete: required 100,000 bytes, found 600"),
        ("absent.tar", "404"),
        ("login.tar", "no tar file but, perhaps, a login page or an error: it begins with b'<!DOCTYPE html><title>"),
        ("empty.tar", "it begins with b''"),
        ("huge-header.tar", "no tar file but"),
        ("zeros.tar", "no tar file but"),
        ("leaking.tar", "HTTP status 403 Forbidden"),
        ("cut.tar", "gave no length, and the download was cut: "),
        ("cut-between-members.tar", "gave no length, and the download was cut: "),
    ],
)
def test_a_download_that_is_no_whole_tar_is_not_kept(server: str, tmp_path: Path, name: str, found: str) -> None:
    for _ in range(2):  # what was not kept is asked for again
        with pytest.raises(ShardError, match=re.escape(found)) as error:
            list_shards(f"{server}/{name}?X-Signature=5ecret", tmp_path / "cache", progress=False)
        assert f"{server}/{name}?... " in str(error.value)
        assert str(tmp_path / "cache") in str(error.value)
        cause: BaseException | None = error.value
        while cause is not None:  # also what a traceback shows above it
            assert "5ecret" not in str(cause)
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [f".{name}.lock"]


@pytest.mark.parametrize("name", ["odd.tar", "nothing-said.tar"])
def test_without_a_length_that_is_a_number_a_whole_tar_is_kept(server: str, tmp_path: Path, name: str) -> None:
    (shard,) = list_shards(f"{server}/{name}", tmp_path / "cache", progress=False)
    assert shard.read_bytes() == WHOLE


def test_a_user_and_a_password_are_sent_and_never_printed(
    server: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(folder / "private.tar", plain_members(2))
    url, cache = server.replace("http://", "http://me:p%40ss@") + "/private.tar?sig=5ecret", str(tmp_path / "cache")
    (shard,) = list_shards(url, cache, progress=False)
    assert shard.read_bytes() == (folder / "private.tar").read_bytes()
    wrong = url.replace("p%40ss", "hunter2")
    sources = [wrong, wrong + "{", wrong.replace("http", "s3", 1), [url, url], [wrong, 3]]
    for source in sources:
        with pytest.raises((ShardError, ConfigError)) as error:
            list_shards(source, cache, progress=False)  # type: ignore[arg-type]
        assert "private.tar" in str(error.value) or source == [wrong, 3]
        assert not re.search("hunter2|p%40ss|p@ss|5ecret", str(error.value))
    assert main(["verify", wrong, url, "--cache-dir", cache, "--quiet", "--json", str(tmp_path / "report.json")]) == 1
    assert main(["index", url, "--cache-dir", cache, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert not re.search("hunter2|p%40ss|5ecret", printed.out + printed.err + (tmp_path / "report.json").read_text())


def test_an_image_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(plain_image((64, 64)))
    with pytest.raises(ShardError, match="is a JPEG, not a tar"):
        open_index(tmp_path / "x.jpg", progress=False)


def test_images_that_are_not_in_shards_yet_lead_to_pack(tmp_path: Path) -> None:
    image = tmp_path / "images" / "train" / "cat" / "a.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(plain_image())
    for folder in (image.parent, image.parent.parent, image.parents[2]):
        with pytest.raises(ShardError, match=r"It holds images: make shards of them with multimix-pipe pack"):
            list_shards(folder)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(image, "cat/a.jpg")
    for path, kind in ((image, "a JPEG"), (tmp_path / "images.zip", "a zip")):
        with pytest.raises(ShardError, match=f"is {kind}, not a tar: make shards with multimix-pipe pack"):
            open_index(path, progress=False)
        assert not list(path.parent.glob("*.index"))
