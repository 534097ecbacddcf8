"""What names shards, and what is refused by name."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from helpers.images import plain_image
from helpers.tars import plain_members, write_tar
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
    with pytest.raises(ShardError, match=r"required \*\.tar.*found 1 other files.*a\.tar\.gz"):
        list_shards(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pipe:cat a.tar", "shell commands"),
        ("s3://bucket/a.tar", "copy or mount"),
        ("gs://bucket/{0..3}.tar", "copy or mount"),
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
        with pytest.raises(ShardError, match=r"1 shards are broken links or not regular files: \S*/b\.tar"):
            list_shards(source)


def test_pipes_run_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list_shards(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


def test_a_shard_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train-000001\.tar twice"):
        list_shards([folder, folder / "train-000001.tar"])


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "short" in self.path or "odd" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "a few" if "odd" in self.path else "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
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


@pytest.mark.parametrize("name", ["short.tar", "absent.tar"])
def test_a_download_that_fails_is_an_error_and_leaves_no_shard(server: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ShardError, match=name):
        list_shards(f"{server}/{name}", tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_a_length_that_is_no_number_is_not_believed(server: str, tmp_path: Path) -> None:
    (shard,) = list_shards(f"{server}/odd.tar", tmp_path / "cache", progress=False)
    assert shard.read_bytes() == b"x" * 10


def test_an_image_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(plain_image((64, 64)))
    with pytest.raises(ShardError, match="not a whole tar"):
        open_index(tmp_path / "x.jpg", progress=False)
