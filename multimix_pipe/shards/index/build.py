"""Builds index files, for many shards in parallel worker processes.

The workers run `python -m multimix_pipe.shards.index.worker`. With subprocess, a user's script needs no `__main__` guard, and
no process is forked that may have threads and a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.cores import usable_cores
from multimix_pipe.shards.index.scan import scan_shard
from multimix_pipe.shards.index.store import save_table

Job = tuple[Path, str, Path]
"""Shard, label, index file."""

MIN_SHARDS, MIN_BYTES = 8, 64 * 2**20  # with less, starting workers takes longer than they save


def build_indexes(jobs: Sequence[Job], *, workers: int | None, done: Callable[[], object]) -> None:
    """Build the index file of each job in `workers` processes (None: one per usable core), and call `done` after each.

    The first error ends all work: ShardError if a shard is to blame, MultiMixError if an index cannot be written.
    """
    count = min(workers or usable_cores(), len(jobs))
    if count == 1 or len(jobs) < MIN_SHARDS or sum(shard.stat().st_size for shard, _, _ in jobs) < MIN_BYTES:
        for job in jobs:
            build_one(*job)
            done()
        return
    idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    started: list[subprocess.Popen[str]] = []
    pool = ThreadPoolExecutor(count)
    try:
        for _ in range(count):
            started.append(_start_worker())
            idle.put(started[-1])
        for future in as_completed([pool.submit(_build_remote, job, idle) for job in jobs]):
            future.result()
            done()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.kill()  # safe while it works, as index files are written atomically
        pool.shutdown()
        for worker in started:
            worker.communicate()


def build_one(shard: Path, label: str, target: Path) -> None:
    """Write the index of `shard` to the file `target`, in this process."""
    save_table(target, scan_shard(shard, label), label)


def _start_worker() -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[3])  # the worker imports the same package, even if it is not installed
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "multimix_pipe.shards.index.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches only this process, which then ends the workers
        env={**os.environ, "PYTHONPATH": path},
    )


def _build_remote(job: Job, idle: SimpleQueue[subprocess.Popen[str]]) -> None:
    worker = idle.get()
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps([str(part) for part in job]) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except OSError:
        answer = ""
    idle.put(worker)
    if not answer:
        raise ShardError(f"the process that indexed {job[0]} ended ({worker.wait()}); its message is above")
    problem = json.loads(answer)
    if problem is not None:
        message, shard_is_to_blame = problem
        raise ShardError(message) if shard_is_to_blame else MultiMixError(message)
