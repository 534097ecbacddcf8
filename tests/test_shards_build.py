"""Index files are built in other processes, once, whatever else opens the same data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tars import plain_members, write_tar
from multimix_pipe.errors import MultiMixError, ShardError
from multimix_pipe.shards.index import build, open_index

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(9):
        write_tar(tmp_path / f"s{i}.tar", plain_members(2, start=2 * i))
    return tmp_path


@pytest.fixture
def always_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MIN_BYTES", 0)
    monkeypatch.setattr(build, "build_one", None)  # would fail if this process built


@pytest.mark.usefixtures("always_workers")
def test_workers_build_what_this_process_would(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(folder, workers=2, progress=False)
    assert index.label.tolist() == list(range(18))
    files = {path.name: path.read_bytes() for path in folder.glob("*.index")}
    assert len(files) == 9
    monkeypatch.undo()
    assert open_index(folder, progress=False, rebuild=True).fingerprint == index.fingerprint
    assert {path.name: path.read_bytes() for path in folder.glob("*.index")} == files


@pytest.mark.usefixtures("always_workers")
def test_an_error_in_a_worker_is_the_same_error_here(folder: Path) -> None:
    (folder / "s5.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ShardError, match=r"s5\.tar .*not a whole tar"):
        open_index(folder, workers=2, progress=False)


@pytest.mark.usefixtures("always_workers")
def test_what_a_shard_is_not_to_blame_for_is_no_shard_error_from_a_worker_either(folder: Path) -> None:
    (folder / "s5.tar.index").mkdir()
    with pytest.raises(MultiMixError, match=r"s5\.tar\.index cannot be written") as caught:
        open_index(folder, workers=2, progress=False)
    assert not isinstance(caught.value, ShardError)


@pytest.mark.usefixtures("always_workers")
def test_a_worker_that_dies_is_an_error_not_a_hang(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ShardError, match=r"the process that indexed .*s\d\.tar ended"):
        open_index(folder, workers=2, progress=False)


SCRIPT = """
import sys
from multimix_pipe.shards.index import build, open_index
build.MIN_BYTES = 0
print(open_index(sys.argv[1], workers=2, progress=False).label.tolist())
"""


def _run_scripts(count: int, folder: Path, tmp_path: Path) -> list[subprocess.Popen[str]]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), str(folder)]
    return [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment())
        for _ in range(count)
    ]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_script_needs_no_main_guard(folder: Path, tmp_path: Path) -> None:
    (process,) = _run_scripts(1, folder, tmp_path)
    out, err = process.communicate(timeout=60)
    assert (out, err) == (f"{list(range(18))}\n", "")


def test_processes_that_open_new_data_together_agree(folder: Path, tmp_path: Path) -> None:
    processes = _run_scripts(3, folder, tmp_path)
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, f"{list(range(18))}\n", "")
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


def test_only_one_of_two_processes_builds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    with open(folder / ".multimix-index.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (process,) = _run_scripts(1, folder, folder)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)  # it waits for the lock
        assert not list(folder.glob("*.index"))
        monkeypatch.setattr("multimix_pipe.shards.index.store.fcntl.flock", lambda *_: None)
        open_index(folder, progress=False)
        monkeypatch.undo()
        built = {path.name: path.stat().st_ino for path in folder.glob("*.index")}
    out, _ = process.communicate(timeout=60)
    assert out == f"{list(range(18))}\n"
    assert {path.name: path.stat().st_ino for path in folder.glob("*.index")} == built
