"""The files of a source of images: a folder, a zip, or a tar, which may hold tars, as ImageNet's own download does."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards.files import read_fully

_IMAGENET_TAR = re.compile(r"ILSVRC2012_img_(train|val|test)(_v\d+)?(_\d+)?\.tar")  # the split is their folder
_REQUIRED = "required a folder, zip or tar of images class/name.jpg"


@dataclass(frozen=True)
class Files:
    """The files of a source. Use it as a context manager, which closes the archives."""

    path: Path
    sizes: dict[str, int]
    """Size in bytes of each file, by its path with forward slashes."""
    _read: Callable[[str], bytes]
    _opened: ExitStack

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Thread-safe. Raises ShardError if they cannot be read."""
        try:
            return self._read(name)
        except (OSError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
            raise ShardError(f"{self.path} : {name} cannot be read: {error}") from error

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def open_files(path: Path) -> Files:
    """List the files of a folder, zip or tar. Tars within a tar, and ImageNet's tars in a folder, are listed as folders.

    Raises ConfigError if `path` is nothing of the kind, and ShardError if a tar is damaged.
    """
    with ExitStack() as opened:
        if path.is_dir():
            sizes, read = _open_folder(path, opened)
        elif zipfile.is_zipfile(path):
            archive = opened.enter_context(zipfile.ZipFile(path))
            sizes, read = {i.filename: i.file_size for i in archive.infolist() if not i.is_dir()}, archive.read
        elif path.is_file() and tarfile.is_tarfile(path):
            tars = _Tars(opened)
            tars.add(path, "")
            sizes, read = tars.sizes, tars.read
        else:
            raise ConfigError(
                f"{path}: {_REQUIRED}, found {'a file of another kind' if path.exists() else 'nothing there'}"
            )
        return Files(path, sizes, read, opened.pop_all())
    raise AssertionError  # for type checkers: no context manager here swallows an exception


def _open_folder(root: Path, opened: ExitStack) -> tuple[dict[str, int], Callable[[str], bytes]]:
    sizes, tars = {}, _Tars(opened)
    for name, size in _walk(root):
        if split := _IMAGENET_TAR.fullmatch(name):
            tars.add(root / name, f"{split[1]}/")
        else:
            sizes[name] = size
    return sizes | tars.sizes, lambda name: tars.read(name) if name in tars.sizes else (root / name).read_bytes()


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(root, followlinks=True):  # like torchvision: class folders may be symbolic links
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                yield os.path.relpath(path, root).replace(os.sep, "/"), os.path.getsize(path)


class _Tars:
    """Files in plain tars, found by their position: nothing is unpacked."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self._places: dict[str, tuple[int, int]] = {}  # descriptor, offset
        self.sizes: dict[str, int] = {}

    def add(self, path: Path, prefix: str) -> None:
        file = self._opened.enter_context(path.open("rb"))
        try:
            for name, offset, size in _members(file):
                self._places[prefix + name], self.sizes[prefix + name] = (file.fileno(), offset), size
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            hint = "; a compressed tar must be decompressed first" if "header" in str(error) else ""
            raise ShardError(f"{path} is not a whole plain tar: {error}{hint}; copy or download it again") from error

    def read(self, name: str) -> bytes:
        (descriptor, offset), size = self._places[name], self.sizes[name]
        data = bytearray(size)
        if (got := read_fully(descriptor, memoryview(data), offset)) < size:
            raise OSError(f"it has {got:,} of {size:,} bytes")
        return bytes(data)


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each file in a plain tar; those of a tar `x.tar` in it are named `x/...`."""
    for name, offset, size in _list(file):
        if not name.endswith(".tar"):
            yield name, offset, size
            continue
        inner = cast(BinaryIO, _Span(file, offset, size))
        for inner_name, inner_offset, inner_size in _list(inner):
            yield f"{name.removesuffix('.tar')}/{inner_name}", offset + inner_offset, inner_size


def _list(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    tar = tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")  # noqa: SIM115  the caller closes the file
    while (member := tar.next()) is not None:
        cast(Any, tar).members.clear()  # tarfile keeps all of them, gigabytes for ImageNet
        if member.isreg() and not member.issparse():
            yield member.name.removeprefix("./"), member.offset_data, member.size


class _Span:
    """A file within another, for tarfile to read headers from."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._at = file.fileno(), start, size, 0

    def read(self, size: int) -> bytes:
        data = os.pread(self._descriptor, max(0, min(size, self._size - self._at)), self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, at: int) -> None:
        self._at = at

    def tell(self) -> int:
        return self._at
