"""Runs the contenders in turn, each in its own process, which is suspended during the turns of the others.

A contender that is missing, fails, dies or hangs gets a row with the reason, and the race continues without it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tqdm import tqdm

from race.contenders import Contender
from race.setting import Setting
from race.usage import memory_bytes

PATHS = [str(parent) for parent in Path(__file__).resolve().parents[1:3]]
"""bench/, and the repository's root, so that the package need not be installed."""


@dataclass
class Row:
    """The result of one contender in one setting. The lists hold one value per round."""

    name: str
    title: str
    k: int | None
    status: Literal["ok", "missing", "cannot", "failed"] = "ok"
    message: str = ""
    """The reason why figures are missing; empty if status is "ok"."""
    rates: list[float] = field(default_factory=list)
    """Decoded images per second, which are pairs per second."""
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of the contender's processes per 1,000 images, in seconds; empty if unknown."""
    memory: int = 0
    """Largest memory of its processes at the end of a turn, in bytes; 0 if unknown."""

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return median(self.rates)


def race(
    contenders: Mapping[str, Contender],
    settings: Sequence[Setting],
    *,
    seconds: float,
    rounds: int,
    limit: float = 120.0,
) -> list[Row]:
    """Run each contender in each setting, all of them in turn, round after round.

    Args:
        contenders: the contenders by name.
        settings: the work. All settings are measured in the same rounds and are in memory together.
        seconds: the minimum length of a turn.
        rounds: the number of turns of each contender, after an uncounted warm-up turn.
        limit: the seconds, beyond the length of its turn, after which an unresponsive contender is given up.

    Returns a row per contender and setting, ordered by setting and then as `contenders`.
    """
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="multimix_bench_")))
        total = len(settings) * len(contenders) * (rounds + 2)
        bar = stack.enter_context(tqdm(total=total, unit="turn", disable=None, leave=False))  # no bar in a log
        processes: list[_Process] = []
        for setting in settings:
            for name, contender in contenders.items():
                bar.set_description(name)
                process = _Process(Row(name, contender.title, setting.k), logs / f"{len(processes)}.log")
                stack.callback(process.end)
                process.ask((contender, setting), limit)
                processes.append(process)
                bar.update()
        for turn in range(rounds + 1):
            for process in processes:
                bar.set_description(process.row.name)
                process.take_turn(seconds, limit, counts=turn > 0)
                bar.update()
    return [process.row for process in processes]


class _Process:
    """A contender's process and its row."""

    def __init__(self, row: Row, log: Path) -> None:
        self.row = row
        self._log = log
        path = os.pathsep.join(filter(None, [*PATHS, os.environ.get("PYTHONPATH")]))
        self._connection, others = Pipe()
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "race.worker", str(others.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[others.fileno()],
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(log.parent)},  # removed with the logs
            )
        others.close()

    def take_turn(self, seconds: float, limit: float, *, counts: bool) -> None:
        """Let the contender run for `seconds`; do nothing if it has failed before."""
        if self.row.status != "ok":
            return
        self._signal(signal.SIGCONT)
        answer = self.ask(seconds, seconds + limit)
        if counts and "images" in answer:
            self.row.rates.append(answer["images"] / answer["seconds"])
            if answer["cpu_seconds"] is not None:
                self.row.cpu_seconds.append(1000 * answer["cpu_seconds"] / answer["images"])
            self.row.memory = max(self.row.memory, memory_bytes(self._process.pid) or 0)

    def ask(self, question: object, limit: float) -> dict[str, Any]:
        """Send a question, suspend the process and return its answer. After a failure, note it in the row and end the process."""
        answer = self._exchange(question, limit)
        self._signal(signal.SIGSTOP)
        for status in ("missing", "cannot", "failed"):
            if status in answer:
                self.row.status, self.row.message = status, answer[status]
                self.end()
                if status == "failed":
                    tqdm.write(f"{self.row.name}: {self._log.read_text(errors='replace')}", sys.stderr)
        return answer

    def end(self) -> None:
        """End the process and everything that it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)  # also ends children that outlived it
        except ProcessLookupError:
            self._process.kill()
        self._process.wait()
        self._connection.close()

    def _exchange(self, question: object, limit: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit
        try:
            self._connection.send(question)
            while not self._connection.poll(0.2):
                # children of a dead process may keep the pipe open, so do not rely on its end
                if self._process.poll() is not None and not self._connection.poll():
                    break
                if time.monotonic() > deadline:
                    return {"failed": f"no answer within {limit:g} s{self._last_line()}"}
            else:
                answer: dict[str, Any] = self._connection.recv()
                return answer
        except (OSError, EOFError):
            pass  # it has closed its end
        status = self._process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return {"failed": f"ended {how}{self._last_line()}"}

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        printed = [" ".join(line.split()) for line in lines if line.strip()]
        return f"; its last line: {printed[-1]}" if printed else ""

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:  # it has not yet made its own process group
                self._process.send_signal(number)
