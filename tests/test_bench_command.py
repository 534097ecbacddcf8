"""Promises of `multimix-pipe bench`: a table of both backends on one's own shards, and after Ctrl-C of what was measured."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.backends import dali_missing
from multimix_pipe.cli import bench, main

SMALL = ["--batch-size", "8", "--size", "16", "--device", "cpu", "--threads", "1"]
BACKENDS = ("torch",) if dali_missing() else ("dali", "torch")


def rows(printed: str) -> dict[str, list[float]]:
    """The figures of each line of the table, by the loader's name."""
    found = {}
    for line in printed.splitlines():
        if match := re.match(r"(dali|torch), (K = \d+|no mixing) ", line):
            found[match[0].strip()] = [float(number.replace(",", "")) for number in re.findall(r"[\d,]+", line[18:])]
    return found


def test_each_backend_is_measured_with_mixing_and_without(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(shards), *SMALL, "--k", "3", "--seconds", "0.05", "--rounds", "3", "--quiet"]) == 0
    printed = capsys.readouterr()
    table = rows(printed.out)
    assert list(table) == [f"{backend}, {mix}" for backend in BACKENDS for mix in ("K = 3", "no mixing")]
    for name, (middle, low, high, model, model_low, model_high) in table.items():
        assert 0 < low <= middle <= high
        factor = 3 if "K = 3" in name else 1
        assert (model, model_low, model_high) == pytest.approx([factor * x for x in (middle, low, high)], abs=2)
    assert "100 images in 4 shards, B = 8, 16x16, on cpu" in printed.out
    assert "measuring" not in printed.err


def test_an_interrupt_prints_what_was_measured_and_ends_with_130(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, turns = bench._turn, []

    def turn(*arguments: Any) -> float:
        turns.append(real(*arguments))
        if len(turns) == 2 * len(BACKENDS) + 2:  # a round that does not count, and half a round or the whole one
            signal.raise_signal(signal.SIGINT)
        return turns[-1]

    monkeypatch.setattr(bench, "_turn", turn)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as under nohup
    try:
        assert main(["bench", str(shards), *SMALL, "--seconds", "0.02", "--rounds", "500", "--quiet"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr()
    ((name, figures),) = rows(printed.out).items()
    assert name == f"{BACKENDS[0]}, K = 5"
    assert figures[0] == pytest.approx(turns[-2], abs=1)
    assert printed.err.endswith("multimix-pipe: interrupted\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--k", "0"], "MultiMix.k must be an int in [1, 1024]; found 0"),
        (["--batch-size", "0"], "--batch-size must be an int >= 1; found 0"),
        (["--size", "0"], "--size must be an int in [1, 16384]; found 0"),
        (["--threads", "0"], "--threads must be an int in [1, 1024]; found 0"),
        (["--rounds", "0"], "--rounds must be an int >= 1; found 0"),
        (["--seconds", "0"], "--seconds must be a finite number"),
        (["--seconds", "soon"], "invalid float value: 'soon'"),
        (["--device", "abacus"], "device must be"),
        (["--label", "name"], 'label must be "cls", "txt", "folder", "json:KEY"'),
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(
    shards: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(shards), *options, "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert len(printed.err.splitlines()) == 1


def test_no_shards_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path)]) == 2
    assert "no shards: required *.tar files" in capsys.readouterr().err
