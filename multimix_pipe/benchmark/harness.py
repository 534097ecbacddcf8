"""What all benchmarks share: the machine's description, runs taken in turn, results as JSON, as a table and as a chart.

Machines are noisy, so contenders run in turn, round after round, and a figure is quoted as its ratio to another of the same
round. Medians over the rounds are printed with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from multimix_pipe.benchmark.chart import Bar, Group, draw_bars
from multimix_pipe.drawing import save_picture
from multimix_pipe.runtime.machine import describe_machine, package_versions

T = TypeVar("T")

PEERS = ("torchvision", "timm", "spdl", "ffcv", "opencv-python", "opencv-python-headless")
"""Packages whose versions matter to some figure, beside those that this one requires."""


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU and versions: what a figure must be quoted with."""
    described = {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    versions = {name: version for name, version in package_versions(*PEERS).items() if version}
    return {**describe_machine(), **described, "versions": versions}


def machine_line() -> str:
    """The machine in a line, as a chart's subtitle."""
    about = describe_machine()
    gpu = f"{about['gpu']}, " if "gpu" in about else ""
    return f"{gpu}{about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB, {time.strftime('%Y-%m-%d')}"


def ratio(values: list[float], peer: list[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(value / other for value, other in zip(values, peer, strict=True))


@dataclass
class Figures:
    """Measurements of one question: a list of values a contender, one a round."""

    unit: str
    peer: str
    """The contender that ratios are to."""
    values: dict[str, list[float]] = field(default_factory=dict)
    cores: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds of this process and of its children that ended, a second of the measurement: cores kept busy."""

    def ratio(self, name: str) -> float:
        """Median of a contender's ratios to the peer, round by round."""
        return ratio(self.values[name], self.values[self.peer])

    def table(self) -> str:
        """One line a contender: median (lowest .. highest), the ratio to the peer, and the cores that it kept busy."""
        width = max(map(len, self.values))
        lines = []
        for name, values in self.values.items():
            spread = f"({min(values):.4g} .. {max(values):.4g})"
            busy = f"{statistics.median(self.cores[name]):5.2f} cores" if name in self.cores else ""
            lines.append(
                f"{name:{width}}  {statistics.median(values):10.4g} {self.unit} {spread:24} "
                f"x {self.ratio(name):.2f}  {busy}".rstrip()
            )
        return "\n".join([*lines, f"x: ratio to {self.peer!r} in the same round"])

    def summary(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "unit": self.unit,
            "peer": self.peer,
            "values": self.values,
            "cores": self.cores,
            "median": {name: statistics.median(values) for name, values in self.values.items()},
            "spread": {name: [min(values), max(values)] for name, values in self.values.items()},
            "ratio_to_peer": {name: self.ratio(name) for name in self.values},
        }

    def chart(self, question: str, path: Path) -> None:
        """Write a bar chart of medians with whiskers from the lowest to the highest."""
        bars = [
            Bar(name, values, f"{self.ratio(name):.2f} x", own=name == self.peer)
            for name, values in self.values.items()
        ]
        note = f"x: ratio to {self.peer} in the same round"
        save_picture(draw_bars(question, [machine_line(), note], [Group("", bars)], self.unit), path)


def in_turn(contenders: Mapping[str, Callable[[], float]], *, unit: str, peer: str, rounds: int) -> Figures:
    """Call each contender once a round, after one round that does not count; a contender returns its figure."""
    figures = Figures(unit, peer, {name: [] for name in contenders}, {name: [] for name in contenders})
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            before = os.times()
            value = measure()
            after = os.times()
            if turn:
                figures.values[name].append(value)
                figures.cores[name].append((sum(after[:4]) - sum(before[:4])) / max(after[4] - before[4], 0.01))
    return figures


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall time of one call; on a GPU until the device is done."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def forever(batches: Iterable[T]) -> Iterator[T]:
    """Epoch after epoch of a loader."""
    while True:
        yield from batches


def rate(
    batches: Iterator[object], batch_size: int, steps: int, *, ahead: int = 5, device: torch.device | None = None
) -> Callable[[], float]:
    """Measures images a second over `steps` batches of an endless loader; `ahead`, which may lie ready, are taken before."""

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)

    def measure() -> float:
        take(ahead)
        return steps * batch_size / seconds(lambda: take(steps), device)

    return measure


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--json", type=Path, help="write the figures there too")
    made.add_argument("--rounds", type=int, default=5)
    return made


def report(question: str, results: dict[str, Any], path: Path | None) -> None:
    """Write results with the machine and the command to `path`, if one is given."""
    if path is None:
        return
    options = [option for at, option in enumerate(sys.argv[1:], 1) if "--json" not in (option, sys.argv[at - 1])]
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *options])
    write_json(path, {"question": question, "command": command, "peak_memory": peak_memory(), **results})


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Write results with the machine to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")


def peak_memory() -> int:
    """Most bytes that this program held at any time: of all contenders together where they share a process."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    # elsewhere; on Linux this one begins with what the parent held
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
