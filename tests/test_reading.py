"""Prefetching: each row gets its sample's bytes, chunks follow the storage's latency, and errors stay in their rows."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.batches import Open
from multimix_pipe import MultiMixError, ShardError
from multimix_pipe.runtime import prefetcher
from multimix_pipe.runtime.context import LoaderContext
from multimix_pipe.runtime.prefetcher import MAX_READS, MAX_ROWS, MIN_ROWS, Pacing, Prefetcher, ReadStep
from multimix_pipe.runtime.rows import RowWorkers
from multimix_pipe.shards import Index, open_index, reader
from multimix_pipe.shards.files import Descriptors, SlowStorage, descriptor_limit
from multimix_pipe.shards.reader import ShardReader


@pytest.fixture(params=["compiled", "python"], autouse=True)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with the compiled loop and with the fallback in Python."""
    if request.param == "python":
        monkeypatch.setattr(reader, "_compiled", lambda: None)
    elif reader._compiled() is None:
        pytest.skip("Numba or statx is missing")
    return str(request.param)


@pytest.fixture
def slow() -> Iterator[Callable[[float], None]]:
    """Return a function that sets the seconds by which each read and each opening of a file is delayed."""

    def wait(seconds: float) -> None:
        SlowStorage.seconds = seconds

    yield wait
    SlowStorage.seconds = 0.0


def read_steps(context: LoaderContext, rows: int, count: int = 1) -> tuple[Prefetcher, list[ReadStep]]:
    ahead = Prefetcher(context)
    steps = [context.plan.step(0, first, first + rows) for first in range(0, rows * count, rows)]
    return ahead, list(ahead.read(steps))


@pytest.mark.parametrize("rows_of_a_chunk", [1, 5, 16, 128])
def test_each_row_gets_the_bytes_of_its_sample(
    opened: Open, monkeypatch: pytest.MonkeyPatch, rows_of_a_chunk: int
) -> None:
    monkeypatch.setattr(prefetcher, "FIRST_ROWS", rows_of_a_chunk)
    monkeypatch.setattr(prefetcher, "MAX_ROWS", rows_of_a_chunk)
    context = opened(batch_size=13, backend="torch").context
    ahead, steps = read_steps(context, 13, 7)
    assert len(steps) == 7
    for step in steps:
        expected = [context.reader.read(int(sample)) for sample in step.replacements.step.sample]
        for one, read in zip(expected, step.rows(), strict=True):
            assert np.array_equal(one, read)
    assert len(steps[0].chunks) == -(-13 // rows_of_a_chunk)
    ahead.close()


def test_a_chunk_ends_at_so_many_bytes_and_so_many_shards(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    context = opened(batch_size=32, backend="torch").context
    monkeypatch.setattr(prefetcher, "FIRST_ROWS", 32)
    monkeypatch.setattr(prefetcher, "MAX_CHUNK_BYTES", 20_000)
    ahead, (step,) = read_steps(context, 32)
    sizes = [context.index.size[step.replacements.step.sample[rows]].sum() for rows in step.chunks.values()]
    assert len(sizes) > 2
    assert max(sizes) < 40_000
    ahead.close()

    monkeypatch.setattr(prefetcher, "MAX_CHUNK_BYTES", 2**24)
    monkeypatch.setattr(ShardReader, "max_shards", 2)
    ahead, (step,) = read_steps(context, 32)
    for rows in step.chunks.values():
        assert len(set(context.index.shard[step.replacements.step.sample[rows]])) <= 2
    assert max(map(len, step.chunks.values())) > 1
    ahead.close()


def test_chunks_are_large_and_few_without_a_wait_and_small_and_many_with_one() -> None:
    def pacing(wait: float) -> Pacing:
        found = Pacing()
        for _ in range(20):
            found.note(wait * 10, 10)
        return found

    cached, disk, network = (pacing(wait) for wait in (20e-6, 1e-3, 20e-3))
    assert (cached.rows, cached.rows_ahead) == (MAX_ROWS, MAX_ROWS)
    assert disk.rows == 32
    assert disk.rows_ahead == 40 * 32
    assert (network.rows, network.rows_ahead) == (MIN_ROWS, MAX_READS * MIN_ROWS)


@pytest.mark.parametrize(("usual", "unusual", "rows"), [(20e-6, 2e-3, MAX_ROWS), (20e-3, 20e-6, MIN_ROWS)])
def test_a_few_reads_do_not_change_the_pace(usual: float, unusual: float, rows: int) -> None:
    """Of a page cache on a busy machine some look slow, and of a network share some are cached."""
    pacing = Pacing()
    for number in range(60):
        pacing.note(unusual if number % 5 == 4 else usual, 1)
        assert number < 5 or pacing.rows == rows
    for _ in range(16):
        pacing.note(unusual, 1)
    assert pacing.rows != rows


def test_many_reads_wait_at_once_where_storage_is_slow(opened: Open, slow: Callable[[float], None]) -> None:
    """One after another, 960 reads of 10 ms would take 10 s."""
    context = opened(batch_size=32, backend="torch").context
    slow(0.01)
    ahead = Prefetcher(context)
    steps = [context.plan.step(0, first, first + 32) for first in range(0, 960, 32)]
    began = time.monotonic()
    for step in ahead.read(steps):
        step.rows()
    assert time.monotonic() - began < 4
    ahead.close()


def test_close_ends_within_one_read(opened: Open, slow: Callable[[float], None]) -> None:
    context = opened(batch_size=64, backend="torch").context
    slow(0.2)
    ahead = Prefetcher(context)
    reading = ahead.read([context.plan.step(0, 0, 64)])
    next(reading)
    time.sleep(0.3)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 2, "64 reads of 0.2 s in chunks of 16 rows would take 3.2 s"


def test_of_several_bad_rows_the_first_raises_and_other_steps_are_read(
    own_shards: Path, opened: Open, tmp_path: Path
) -> None:
    context = opened(own_shards, batch_size=16, backend="torch").context
    shard = own_shards / "set-002.tar"
    os.truncate(shard, 100)
    steps = [context.plan.step(0, first, first + 16) for first in (0, 16)]
    for _ in range(3):
        ahead = Prefetcher(context)
        for step in ahead.read(steps):
            sample = step.replacements.step.sample
            bad = np.flatnonzero(context.index.shard[sample] == 2)
            assert len(bad) > 1
            with pytest.raises(ShardError) as raised:
                step.rows()
            assert context.index.name(int(sample[bad[0]])) in str(raised.value)
        ahead.close()


def test_bytes_count_only_if_their_shard_is_unchanged_after_the_read(own_shards: Path, loop: str) -> None:
    index = open_index(own_shards, progress=False)
    samples = np.arange(len(index))
    start = np.cumsum(index.size) - index.size
    memory = np.zeros(int(index.size.sum()), dtype=np.uint8)
    reads = ShardReader(index)
    assert reads.read_rows(samples, start, memory)[0].all()
    os.utime(own_shards / "set-001.tar", ns=(1, 1))
    assert np.array_equal(reads.read_rows(samples, start, memory)[0], index.shard != 1)
    os.utime(own_shards / "set-001.tar", ns=(index.stamps[1][1], index.stamps[1][1]))
    assert reads.read_rows(samples, start, memory)[0].all()
    with open(own_shards / "set-003.tar", "ab") as file:
        file.write(b"\0")
    assert np.array_equal(reads.read_rows(samples, start, memory)[0], index.shard != 3)
    os.unlink(own_shards / "set-003.tar")
    again = ShardReader(index)
    assert np.array_equal(again.read_rows(samples, start, memory)[0], index.shard != 3)
    with pytest.raises(ShardError, match="No such file"):
        again.read(int(samples[index.shard == 3][0]))


def test_a_row_that_was_not_read_whole_is_read_again_alone(
    opened: Open, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """As happens after an interrupted system call."""
    context = opened(batch_size=16, backend="torch").context
    real = ShardReader.read_rows

    def interrupted(
        self: ShardReader, samples: np.ndarray, start: np.ndarray, memory: np.ndarray
    ) -> tuple[np.ndarray, float]:
        there, seconds = real(self, samples, start, memory)
        memory[:] = 0
        return np.zeros_like(there), seconds

    monkeypatch.setattr(ShardReader, "read_rows", interrupted)
    ahead, (step,) = read_steps(context, 16)
    expected = [context.reader.read(int(sample)) for sample in step.replacements.step.sample]
    assert all(map(np.array_equal, step.rows(), expected))
    ahead.close()


def test_only_reads_count_as_waits(
    shards: Path, monkeypatch: pytest.MonkeyPatch, slow: Callable[[float], None]
) -> None:
    """Otherwise threads that wait for one another's openings would make a page cache look like slow storage."""
    index, samples = open_index(shards, progress=False), np.arange(10)
    start, memory = np.cumsum(index.size[:10]) - index.size[:10], np.empty(int(index.size[:10].sum()), dtype=np.uint8)
    real = reader._exchange

    def late(closing: Sequence[int], opening: Sequence[Path]) -> list[int]:
        time.sleep(0.5)
        return real(closing, opening)

    monkeypatch.setattr(reader, "_exchange", late)
    reads = ShardReader(index)
    assert reads.read_rows(samples, start, memory)[1] < 0.4
    slow(0.02)
    assert reads.read_rows(samples, start, memory)[1] >= 0.2


def held(index: Index, limit: int) -> Descriptors:
    return Descriptors(index.shards, limit, reader._exchange)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_shard_has_one_descriptor_that_all_threads_share(shards: Path) -> None:
    index = open_index(shards, progress=False)
    files, before = held(index, 8), open_descriptors()
    all_hold, counted = threading.Barrier(7), threading.Event()

    def hold() -> None:
        with files.held([0, 1, 2, 3]):
            all_hold.wait(timeout=30)
            counted.wait(timeout=30)

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    all_hold.wait(timeout=30)
    assert open_descriptors() == before + 4
    counted.set()
    for thread in threads:
        thread.join(timeout=30)
    assert open_descriptors() == before + 4
    files.close()
    assert open_descriptors() == before


def test_no_more_shards_are_open_than_the_limit_and_nobody_waits_for_ever(shards: Path, tmp_path: Path) -> None:
    for copy in range(5):
        shutil.copytree(shards, tmp_path / str(copy))
    index = open_index([tmp_path / str(copy) for copy in range(5)], progress=False)
    assert len(index.shards) == 20
    files, before, most = held(index, 5), open_descriptors(), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            wanted = rng.choice(20, 4, replace=False).tolist()
            with files.held(wanted) as descriptors:
                most.append(len(os.listdir("/proc/self/fd")) - before)
                for shard, descriptor in zip(wanted, descriptors, strict=True):
                    assert os.fstat(descriptor).st_ino == os.stat(index.shards[shard]).st_ino

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert max(most) <= 5 + len(threads), "listing them takes one more for each thread"
    files.close()


def test_shards_take_at_most_half_of_the_descriptors_of_the_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert descriptor_limit() == 128
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256, "the limit is not raised"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_without_descriptors_says_so_and_blames_no_sample(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(shards, progress=False)
    reads = ShardReader(index)

    def none_left(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("multimix_pipe.shards.files.os.open", none_left)
    with pytest.raises(MultiMixError, match=r"no sample can be read: .*Too many open files.*ulimit -n"):
        reads.read(0)
    monkeypatch.undo()
    assert len(reads.read(0)) == index.size[0]
    reads.close()


def test_a_shard_that_could_not_be_opened_once_is_not_bad(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(shards, progress=False)
    reads, opening, failed = ShardReader(index), os.open, threading.Event()

    def open_later(*arguments: object) -> int:
        if failed.is_set():
            return opening(*arguments)
        failed.set()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("multimix_pipe.shards.files.os.open", open_later)
    before = open_descriptors()
    assert len(reads.read(0)) == index.size[0]
    assert failed.is_set()
    assert open_descriptors() == before, "the file is open only during that read"
    assert len(reads.read(0)) == index.size[0]
    assert open_descriptors() == before + 1
    reads.close()


def test_an_error_while_rows_are_handed_to_the_decoders_is_raised(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised in a future's callback it would only be logged, and the loader would wait for ever."""

    def no_thread(self: RowWorkers, *arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    loader = opened(batch_size=8, backend="torch")
    with monkeypatch.context() as patch:
        patch.setattr(RowWorkers, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            next(iter(loader))
    assert len(next(iter(loader)).labels) == 8
