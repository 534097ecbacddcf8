"""Shards in object stores: listed, downloaded once and read as local ones. fsspec's store in memory stands for s3, gs and hf."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from helpers.tars import plain_members, write_tar
from multimix_pipe import ConfigError, EvalTransform, ShardError, open_loader
from multimix_pipe.cli import main
from multimix_pipe.shards import list_shards
from multimix_pipe.shards.classes import write_classes


def kept(folder: Path) -> list[str]:
    """Names of the files in a folder, except locks."""
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


NAMES = [f"train-{i:06d}.tar" for i in range(12)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    for i, name in enumerate(NAMES):
        store.pipe(
            f"/bucket/train/{name}", write_tar(tmp_path / "made.tar", plain_members(2, start=2 * i)).read_bytes()
        )
    store.pipe("/bucket/train/train-000000.tar.index", b"")
    store.pipe("/bucket/train/classes.json", write_classes([f"class {i}" for i in range(24)]))
    yield store
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("pattern", ["", "/", "/*.tar", "/train-0000*", "/train-{000000..000011}.tar"])
def test_shards_of_a_store_are_downloaded_once_and_read_as_local_ones(store: Any, tmp_path: Path, pattern: str) -> None:
    url, cache = f"memory://bucket/train{pattern}", tmp_path / "cache"
    shards = list_shards(url, cache, progress=False)
    assert [shard.name for shard in shards] == NAMES
    assert all(shard.read_bytes() == store.cat(f"/bucket/train/{shard.name}") for shard in shards)
    assert not list(cache.rglob("*.part"))
    for name in NAMES:
        store.pipe(f"/bucket/train/{name}", b"changed")
    assert list_shards(url, cache, progress=False) == shards
    assert all(shard.read_bytes() != b"changed" for shard in shards)


def test_the_class_names_of_a_store_come_with_its_shards(store: Any, tmp_path: Path) -> None:
    with open_loader(
        "memory://bucket/train", batch_size=5, transform=EvalTransform(size=8), cache_dir=tmp_path, device="cpu"
    ) as loader:
        assert loader.classes == tuple(f"class {i}" for i in range(24))
        assert sorted(label for batch in loader for label in batch.labels.tolist()) == list(range(24))


def test_class_names_that_a_store_does_not_give_are_left_out_with_a_warning(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(self: Any, path: str) -> bytes:
        raise PermissionError("forbidden: s3://b?X-Signature=5ecret")

    store.rm("/bucket/train/classes.json")
    assert len(list_shards("memory://bucket/train", tmp_path / "none", progress=False)) == 12
    assert not caplog.text
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refused)
    assert len(list_shards("memory://bucket/train", tmp_path / "refused", progress=False)) == 12
    assert (
        "bucket/train/classes.json cannot be read and is left out: PermissionError: forbidden: s3://b?..."
        in caplog.text
    )


def test_class_names_that_come_to_a_store_later_are_fetched(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names, cat = store.cat("/bucket/train/classes.json"), MemoryFileSystem.cat_file
    store.rm("/bucket/train/classes.json")
    list_shards("memory://bucket/train", tmp_path, progress=False)
    assert not caplog.records
    store.pipe("/bucket/train/classes.json", names)

    def slow_down(*args: Any) -> Any:
        raise OSError("slow down")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", slow_down)
    (shard, *_) = list_shards("memory://bucket/train", tmp_path, progress=False)
    assert "bucket/train/classes.json cannot be read and is left out: OSError: slow down" in caplog.text
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat)
    list_shards("memory://bucket/train", tmp_path, progress=False)
    assert (shard.parent / "classes.json").read_bytes() == names
    store.pipe("/bucket/train/classes.json", b"[]")  # cached files are not compared with the store
    list_shards("memory://bucket/train", tmp_path, progress=False)
    assert (shard.parent / "classes.json").read_bytes() == names


def test_a_cache_that_cannot_be_written_is_one_line(store: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ShardError, match=r"classes\.json cannot be downloaded to \S*file/\S*classes\.json: .*Not a directory"
    ):
        list_shards("memory://bucket/train", tmp_path / "file", progress=False)


def test_what_is_cached_is_not_asked_for(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://bucket/train/train-{000000..000003}.tar"
    shards = list_shards(url, tmp_path, progress=False)
    for method in ("glob", "size", "get_file", "cat_file", "isdir"):
        monkeypatch.setattr(MemoryFileSystem, method, lambda *args, **options: pytest.fail("the store was asked"))
    assert list_shards(url, tmp_path, progress=False) == shards


def test_shards_of_the_same_name_in_two_folders_are_told_apart(store: Any, tmp_path: Path) -> None:
    store.pipe("/bucket/other/train-000000.tar", store.cat("/bucket/train/train-000007.tar"))
    first, second = list_shards(
        ["memory://bucket/train/train-000000.tar", "memory://bucket/other/train-000000.tar"], tmp_path, progress=False
    )
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://bucket/train/gone.tar", ShardError, r"gone\.tar cannot be downloaded to \S*gone\.tar: .*gone\.tar"),
        ("memory://bucket/none", ShardError, r"cannot be downloaded"),
        ("memory://bucket", ShardError, r"\*\.tar files at memory://bucket, found none there, but folders: memory:///?bucket/train$"),
        ("memory://bucket/val*.tar", ShardError, r"required \*\.tar files at memory://bucket/val\*\.tar, found none"),
        ("nowhere://bucket/a.tar", ConfigError, r"cannot be read: Protocol not known: nowhere"),
        ("missing://bucket/a.tar", ConfigError, r"cannot be read: Install a package"),
        ("failing://bucket/a.tar", ShardError, r"cannot be downloaded .*: RuntimeError: no credentials for s3://b\?\.\.\."),
        ("failing://bucket/*.tar", ShardError, r"cannot be listed: RuntimeError: no credentials"),
    ],
)  # fmt: skip
def test_what_a_store_cannot_give_is_one_line(
    store: Any, tmp_path: Path, url: str, error: type[Exception], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(MemoryFileSystem):  # type: ignore[misc]  # untyped
        protocol = "failing"

        def glob(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("no credentials for s3://b?X-Signature=5ecret")

        get_file = glob

    fsspec.register_implementation("failing", Failing, clobber=True)
    fsspec.register_implementation("missing", "no_such_package.Store", clobber=True, errtxt="Install a package")
    with pytest.raises(error, match=message) as found:
        list_shards(url, tmp_path, progress=False)
    assert "5ecret" not in f"{found.value}{found.value.__cause__}"
    assert main(["index", url, "--cache-dir", str(tmp_path), "--quiet"]) in (1, 2)
    printed = capsys.readouterr()
    assert "5ecret" not in printed.out + printed.err
    assert len(printed.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_an_object_that_arrives_cut_is_not_kept(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = MemoryFileSystem.size
    monkeypatch.setattr(MemoryFileSystem, "size", lambda self, path: size(self, path) + 1)
    with pytest.raises(ShardError, match=r"is not kept as \S*: the download is incomplete: required .* bytes, found"):
        list_shards("memory://bucket/train", tmp_path / "cache", progress=False)
    assert kept(tmp_path / "cache") == ["classes.json"]


def test_several_downloads_run_at_once_and_the_first_failure_ends_them(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, together, begun = MemoryFileSystem.get_file, threading.Barrier(8, timeout=60), []

    def slow(self: Any, path: str, target: str, callback: Any, **options: Any) -> None:
        begun.append(path)
        if len(begun) <= 8:
            together.wait()
        if path == sorted(begun[:8])[0]:
            raise OSError("the line broke")
        while True:  # until it is stopped
            time.sleep(0.01)
            callback.relative_update(0)

    monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
    with pytest.raises(ShardError, match="the line broke"):
        list_shards("memory://bucket/train", tmp_path / "cache", progress=False)
    assert len(begun) < 12
    assert kept(tmp_path / "cache") == ["classes.json"]
    monkeypatch.setattr(MemoryFileSystem, "get_file", get)
    assert len(list_shards("memory://bucket/train", tmp_path / "cache", progress=False)) == 12
