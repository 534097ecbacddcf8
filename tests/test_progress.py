"""Long work shows its progress on stderr: a bar that redraws itself on a terminal, a handful of lines in a log."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import re
import select
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimix_pipe.cli import main
from multimix_pipe.shards import progress
from multimix_pipe.shards.pack import pack
from multimix_pipe.shards.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Lets seconds pass, of which there are none without it."""
    now = 1000.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    yield wait
    monkeypatch.undo()


@pytest.mark.parametrize(("seconds", "lines"), [(1, 1), (9, 1), (60, 6), (600, 17), (3600, 25), (86_400, 39)])
def test_a_log_gets_lines_that_become_rarer(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str], seconds: int, lines: int
) -> None:
    with Progress("verifying", total=seconds, unit="image") as bar:
        for _ in range(seconds):
            clock(1)
            bar.update()
    written = capsys.readouterr().err
    assert "\r" not in written
    assert len(written.splitlines()) == lines
    assert all(re.fullmatch(r"verifying: +\d+% \d+/\d+ \[.*, +1\.00image/s\]", line) for line in written.splitlines())
    assert f"100% {seconds}/{seconds} [" in written.splitlines()[-1]


def test_a_log_has_where_a_phase_was_when_it_was_cut_off(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with Progress("packing", total=8, unit="image") as bar:
            for _ in range(3):
                clock(2)
                bar.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == "packing:  38% 3/8 [00:06<00:10,  2.00s/image]\n"


def test_a_log_tells_what_is_known_where_no_total_is(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("downloading", total=None, unit="B", unit_scale=True) as bar:
        bar.set_postfix_str("a.tar, 1 of 2", refresh=False)
        clock(4)
        bar.update(2_000_000)
    assert capsys.readouterr().err == "downloading: 2.00MB [00:04, 500kB/s, a.tar, 1 of 2]\n"


def on_a_terminal(work: Callable[[], object]) -> str:
    """What is on the terminal that is stderr while `work` is done."""
    keyboard, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # as every window has one
    try:
        with open(screen, "w") as terminal, redirect_stderr(terminal):
            work()
            terminal.flush()
            shown = b""
            while (
                not shown.endswith(b"\n") and select.select([keyboard], [], [], 10)[0]
            ):  # the kernel hands it on in parts
                shown += os.read(keyboard, 2**16)
            return shown.decode()
    finally:
        os.close(keyboard)


def test_a_bar_is_redrawn_in_place_and_has_no_thread() -> None:
    def work() -> None:
        with Progress("packing", total=3, unit="image") as bar:
            assert threading.active_count() == threads
            bar.mininterval = 0
            for _ in range(3):
                bar.update()

    threads = threading.active_count()
    shown = on_a_terminal(work)
    assert shown.count("\rpacking: ") == 5, "at the start, thrice, and at the end"
    assert shown.count("\n") == 1
    assert "| 3/3 [" in shown


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of twelve images of two classes."""
    folder, draw = tmp_path_factory.mktemp("progress"), np.random.default_rng(0)
    for number in range(24):
        place = folder / ("train", "test")[number % 2] / ("a", "b")[number // 2 % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place)
    return folder


COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "pack": (["pack", "IMAGES", "NEW"], ["packing test", "packing train"]),
    "index": (["index", "SHARDS/train"], ["indexing"]),
    "verify": (["verify", "SHARDS/train", "--backend", "torch"], ["indexing", "verifying"]),
    "preview": (["preview", "SHARDS/train", "-o", "NEW", "--size", "16", "--backend", "torch"], ["indexing"]),
    "demo": (
        ["demo", "--data", "SHARDS", "--out", "NEW", "--epochs", "2", "--size", "16", "--backend", "torch"],
        ["indexing", "indexing", "multi-mix, K = 5", "no mixing"],
    ),
}


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Callable[..., None]:
    """Runs one of COMMANDS, on shards without an index."""
    pack(images, tmp_path / "shards", samples_per_shard=4, progress=False)

    def run(name: str, *options: str) -> None:
        places = {"IMAGES": images, "SHARDS": tmp_path / "shards", "NEW": tmp_path / "new.png"}
        words = [re.sub("IMAGES|SHARDS|NEW", lambda found: str(places[found[0]]), word) for word in COMMANDS[name][0]]
        assert main([*words, *options]) == 0

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_write_a_line_a_phase_to_a_log(
    name: str, run: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", math.inf)  # a busy machine may need longer than that for a phase
    run(name)
    printed, written = capsys.readouterr()
    assert "\r" not in written + printed
    lines = [line for line in written.splitlines() if not line.startswith("multimix-pipe: ")]
    assert [line.split(":")[0].rstrip() for line in lines] == COMMANDS[name][1]
    assert all(re.search(r" 100% (\d+)/\1 \[", line) for line in lines)
    assert not re.search(r"\d/\d+ \[", printed)


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_commands_show_no_progress(
    name: str, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, "--quiet")
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("multimix-pipe: ")] == []


def test_commands_draw_bars_on_a_terminal(run: Callable[..., None]) -> None:
    shown = on_a_terminal(lambda: run("verify"))
    for phase, count in (("indexing", 3), ("verifying", 12)):
        assert re.search(rf"\r{phase}: +0%.*\r{phase}: 100%.* {count}/{count} \[.*\n", shown)
