"""A run that is killed again and again trains on the sequence of one that is not: nothing is lost, nothing comes twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.batches import Open, fingerprint
from helpers.processes import environment, program
from helpers.samples import sample_set, write_shards
from programs.train import LIMIT, SETTINGS

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc, and fork")

KILLS = 50
ENVIRONMENT = environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # no threads by importing

Start = Callable[[dict[str, Any]], int]
"""Start a life and give its process id."""
Moment = Callable[[], bool]
"""Whether the life is to end now."""


@contextmanager
def process(errors: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A new Python, whose stderr is a file: nobody reads a pipe meanwhile. It ends with this block, or after a time."""
    command = program("train", *arguments)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with open(errors, "w") as stderr, subprocess.Popen(command, stderr=stderr, **pipes) as running:
        try:
            yield running
        finally:
            running.kill()


class Forks:
    """Lives that are forked by one server."""

    def __init__(self, server: subprocess.Popen[str], errors: Path) -> None:
        self._server = server
        self._errors = errors

    def live(self, context: dict[str, Any], moment: Moment | None) -> int:
        """Run `context` until `moment`, None: to its own end; its exit code."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(context) + "\n")
        self._server.stdin.flush()
        child = self._answer(context)
        if moment is not None:
            kill_at(child, moment, context, self._errors)
        return self._answer(context)

    def _answer(self, context: dict[str, Any]) -> int:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, f"life {context['life']}: the server has ended; {self._errors.read_text()}"
        return int(line)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One server for all tests: it takes seconds to import what its children need."""
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with process(errors, "serve") as server:
        yield Forks(server, errors)


def live_in_a_new_python(context: dict[str, Any], moment: Moment) -> int:
    """As `Forks.live`, in a process that starts from nothing."""
    errors = Path(context["run"]) / "stderr"
    with process(errors, "train", json.dumps(context)) as running:
        kill_at(running.pid, moment, context, errors)
        return running.wait(LIMIT)


def kill_at(pid: int, moment: Moment, context: dict[str, Any], errors: Path) -> None:
    late = time.monotonic() + LIMIT
    while not moment():
        assert time.monotonic() < late, f"life {context['life']} did not come to its end's moment; {errors.read_text()}"
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)


def journal(run: Path, life: int) -> list[Any]:
    """The batches that a life trained on."""
    path = run / f"life-{life}"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_of(run: Path, life: int) -> int:
    path = run / f"life-{life}"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpointed(run: Path) -> dict[str, Any]:
    path = run / "checkpoint.json"
    return json.loads(path.read_text()) if path.exists() else {"loader": {"epoch": 0}, "trained": []}


def after(steps: int, seconds: float, run: Path, life: int) -> Moment:
    """So many seconds after a life's step, or its start."""
    reached: list[float] = [] if steps else [time.monotonic()]

    def moment() -> bool:
        if not reached and steps_of(run, life) >= steps:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() >= reached[0] + seconds

    return moment


def test_a_run_killed_at_50_moments_trains_on_what_an_uninterrupted_one_does(
    opened: Open, shards: Path, tmp_path: Path, forks: Forks, backend: str
) -> None:
    rng = np.random.default_rng(50)
    context = {"shards": str(shards), "run": str(tmp_path), "backend": backend}
    before: list[int] = []  # batches in the checkpoint that each life started from
    for life in range(KILLS):
        before.append(len(checkpointed(tmp_path)["trained"]))
        steps = int(rng.integers(0, 13))
        moment = after(steps, float(rng.uniform(0, 0.01 if steps else 0.2)), tmp_path, life)
        a_life = live_in_a_new_python if life == 3 else forks.live
        assert a_life(context | {"life": life, "epochs": None}, moment) == -signal.SIGKILL, life
    before.append(len(checkpointed(tmp_path)["trained"]))
    epochs = checkpointed(tmp_path)["loader"]["epoch"] + 2
    assert forks.live(context | {"life": KILLS, "epochs": epochs}, None) == 0

    loader = opened(shards, backend=backend, **SETTINGS)
    whole = [fingerprint(batch) for _ in range(epochs) for batch in loader]
    assert checkpointed(tmp_path)["trained"] == whole
    assert checkpointed(tmp_path)["loader"] == loader.state_dict()
    for life, first in enumerate(before):
        lived = journal(tmp_path, life)
        assert lived == whole[first : first + len(lived)], "each life goes on behind the last checkpoint"
    assert len(set(before)) > KILLS // 2, "most lives came to a checkpoint"
    for epoch in range(epochs):  # the last batch of an epoch wraps around to its first four samples
        keys = [key for batch in whole if batch[0] == epoch for key in batch[2]]
        assert sorted(keys[:100]) == sorted(key for key, _, _ in sample_set())


def test_a_kill_while_shards_are_indexed_harms_no_later_opening(tmp_path: Path, forks: Forks) -> None:
    samples = sample_set()
    folder = write_shards(tmp_path / "shards", samples, shards=50)
    rng = np.random.default_rng(7)
    context = {"shards": str(folder), "run": str(tmp_path), "backend": "torch"}
    unfinished = 0
    (folder / f".{next(folder.glob('*.tar')).name}.index.1.tmp").write_bytes(b"half")
    for life in range(12):
        seen = int(rng.integers(0, 50))  # index files, when it is killed
        moment = indexed(folder, seen, after(0, float(rng.uniform(0, 0.01)), tmp_path, life))
        assert forks.live(context | {"life": life, "epochs": None}, moment) == -signal.SIGKILL, life
        unfinished += len(list(folder.glob("*.tar.index"))) < 50
        for index in list(folder.glob("*.tar.index"))[: int(rng.integers(1, 50))]:
            index.unlink()
        (tmp_path / "checkpoint.json").unlink(missing_ok=True)
    assert forks.live(context | {"life": 12, "epochs": 1}, None) == 0
    assert unfinished >= 3, "some were killed before the index was whole"
    trained = [key for batch in checkpointed(tmp_path)["trained"] for key in batch[2]]
    assert set(trained) == {key for key, _, _ in samples}
    assert not list(folder.glob(".*.tmp")), "half written files of the killed are gone"


def indexed(folder: Path, files: int, later: Moment) -> Moment:
    """Once there are so many index files, and `later`."""
    return lambda: len(list(folder.glob("*.tar.index"))) >= files and later()
