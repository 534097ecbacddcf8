"""The keys of a batch, which are decoded when somebody reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.shards.index import Index


class PackedKeys(Sequence[str]):
    """Keys in UTF-8, concatenated. They are a copy: a batch that is kept must not keep the index of all samples."""

    def __init__(self, text: bytes, start: NDArray[np.int64], stop: NDArray[np.int64]) -> None:
        """Key i is text[start[i] : stop[i]]."""
        self._text = text
        self._start = start
        self._stop = stop

    @classmethod
    def of(cls, index: Index, sample_id: NDArray[np.int64]) -> PackedKeys:
        """Return the keys of `sample_id`, without a loop over them."""
        start, size = index.key_start[sample_id], index.key_start[sample_id + 1] - index.key_start[sample_id]
        stop = np.cumsum(size)
        taken = np.repeat(start - (stop - size), size) + np.arange(size.sum())
        return cls(np.frombuffer(index.key_buffer, dtype=np.uint8)[taken].tobytes(), stop - size, stop)

    def __len__(self) -> int:
        return len(self._start)

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> PackedKeys: ...
    def __getitem__(self, item: int | slice) -> str | PackedKeys:
        if isinstance(item, slice):
            return PackedKeys(self._text, self._start[item], self._stop[item])
        return self._text[self._start[item] : self._stop[item]].decode("utf-8", "surrogateescape")
