"""Writes samples into a sequence of shards, each of which appears under its name only when it is complete."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from multimix_pipe.errors import ShardError

PARTIAL = ".part"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: a reader sees either the old file or the new one."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(data)
    os.replace(partial, path)


class ShardWriter:
    """A context manager like webdataset's ShardWriter, for shards `PREFIX-000000.tar`, ... in `out`."""

    def __init__(self, out: Path, prefix: str, samples_per_shard: int, bytes_per_shard: int) -> None:
        # imported here, as the import is slow and only packing needs it
        from webdataset.writer import TarWriter

        self._open_tar = TarWriter
        self._out, self._prefix = out, prefix
        self._samples_per_shard, self._bytes_per_shard = samples_per_shard, bytes_per_shard
        self._file: io.BufferedWriter | None = None
        self._tar: TarWriter | None = None
        self._samples = self._bytes = 0
        self.done: list[Path] = []
        """The complete shards."""

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, sample: dict[str, Any]) -> None:
        """Write a sample, in a new shard if the current one is full. Raises ShardError if that fails."""
        full = self._samples >= self._samples_per_shard or self._bytes >= self._bytes_per_shard
        try:
            if self._tar is None or full:
                self._finish()
                self._start()
            assert self._tar is not None
            self._bytes += self._tar.write(sample)
        except OSError as error:
            raise ShardError(f"{self._out}: the shard cannot be written: {error}") from error
        self._samples += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._finish()
            except OSError as error:
                raise ShardError(f"{self._out}: the last shard cannot be written: {error}") from error
        elif self._tar is not None and self._file is not None:
            with suppress(OSError):  # on a full disk these fail again, and must not hide the first error
                self._tar.close()
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    def _start(self) -> None:
        name = f"{self._prefix}-{len(self.done):06d}.tar"
        # a file object, as webdataset would run a name that starts with pipe: as a command
        self._file = open(self._out / (name + PARTIAL), "wb")  # noqa: SIM115  closed in _finish
        # fixed owner and time, so that the same input gives the same bytes
        self._tar = self._open_tar(self._file, encoder=False, user="", group="", mtime=0)
        self._samples = self._bytes = 0

    def _finish(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut could leave the name without the data
        self._file.close()
        partial = Path(self._file.name)
        os.replace(partial, partial.with_suffix(""))
        self.done.append(partial.with_suffix(""))
        self._file = self._tar = None
