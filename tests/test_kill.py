"""A run that is killed again and again trains on the sequence of one that is not: nothing is lost, nothing comes twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.batches import Open, fingerprint
from helpers.forks import Forks
from helpers.processes import environment, program
from helpers.samples import sample_set, write_shards
from programs.server import LIMIT
from programs.train import SETTINGS

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc, and fork")

KILLS = 50

Moment = Callable[[], bool]
"""Whether the life is to end now."""


def live(forks: Forks, context: dict[str, Any], moment: Moment | None) -> int:
    """Run `context` in a fork until `moment`, None: to its own end; return its exit code."""
    if moment is None:
        return forks.exit_code("train", **context)
    return forks.exit_code("train", meanwhile=lambda pid: kill_at(pid, moment, context, forks.errors), **context)


def live_in_a_new_python(context: dict[str, Any], moment: Moment) -> int:
    """As `live`, in a process that starts from nothing."""
    errors = Path(context["run"]) / "stderr"  # a file: nobody reads a pipe meanwhile
    with (
        open(errors, "w") as stderr,
        subprocess.Popen(program("train", json.dumps(context)), stderr=stderr, env=environment()) as running,
    ):
        try:
            kill_at(running.pid, moment, context, errors)
            return running.wait(LIMIT)
        finally:
            running.kill()


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
    opened: Open, small_shards: Path, tmp_path: Path, forks: Forks, backend: str
) -> None:
    rng = np.random.default_rng(50)
    context = {"shards": str(small_shards), "run": str(tmp_path), "backend": backend}
    before: list[int] = []  # batches in the checkpoint that each life started from
    for life in range(KILLS):
        before.append(len(checkpointed(tmp_path)["trained"]))
        steps = int(rng.integers(0, 13))
        moment = after(steps, float(rng.uniform(0, 0.01 if steps else 0.2)), tmp_path, life)
        this = context | {"life": life, "epochs": None}
        code = live_in_a_new_python(this, moment) if life == 3 else live(forks, this, moment)
        assert code == -signal.SIGKILL, life
    before.append(len(checkpointed(tmp_path)["trained"]))
    epochs = checkpointed(tmp_path)["loader"]["epoch"] + 2
    assert live(forks, context | {"life": KILLS, "epochs": epochs}, None) == 0

    loader = opened(small_shards, backend=backend, **SETTINGS)
    whole = [fingerprint(batch) for _ in range(epochs) for batch in loader]
    assert checkpointed(tmp_path)["trained"] == whole
    assert checkpointed(tmp_path)["loader"] == loader.state_dict()
    for life, first in enumerate(before):
        lived = journal(tmp_path, life)
        assert lived == whole[first : first + len(lived)], "each life goes on behind the last checkpoint"
    assert len(set(before)) > KILLS // 2, "most lives came to a checkpoint"
    everything = sorted(key for key, _, _ in sample_set())
    for epoch in range(epochs):  # the last batch of an epoch wraps around to its first four samples
        keys = [key for batch in whole if batch[0] == epoch for key in batch[2]]
        assert sorted(keys[:100]) == everything


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
        assert live(forks, context | {"life": life, "epochs": None}, moment) == -signal.SIGKILL, life
        unfinished += len(list(folder.glob("*.tar.index"))) < 50
        for index in list(folder.glob("*.tar.index"))[: int(rng.integers(1, 50))]:
            index.unlink()
        (tmp_path / "checkpoint.json").unlink(missing_ok=True)
    assert live(forks, context | {"life": 12, "epochs": 1}, None) == 0
    assert unfinished >= 3, "some were killed before the index was whole"
    trained = [key for batch in checkpointed(tmp_path)["trained"] for key in batch[2]]
    assert set(trained) == {key for key, _, _ in samples}
    assert not list(folder.glob(".*.tmp")), "half written files of the killed are gone"


def indexed(folder: Path, files: int, later: Moment) -> Moment:
    """Once there are so many index files, and `later`."""
    return lambda: len(list(folder.glob("*.tar.index"))) >= files and later()
