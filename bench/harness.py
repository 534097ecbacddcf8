"""What all benchmarks share: the machine's description, runs taken in turn, results as JSON.

Machines are noisy, so contenders run in turn, round after round, and a figure is quoted as its ratio to another of the same
round. Medians over the rounds are printed with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from multimix_pipe.cli.machine import describe_machine, package_versions


def machine() -> dict[str, Any]:
    """Processor, cores, GPU and versions: what a figure must be quoted with."""
    described = {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    return {**describe_machine(), **described, "versions": package_versions()}


@dataclass
class Figures:
    """Measurements of one question: a list of values a contender, one a round."""

    unit: str
    peer: str
    """The contender that ratios are to."""
    values: dict[str, list[float]] = field(default_factory=dict)

    def table(self) -> str:
        """One line a contender: median (lowest .. highest), and the median of its ratios to the peer, round by round."""
        width = max(map(len, self.values))
        lines = []
        for name, values in self.values.items():
            ratios = [value / peer for value, peer in zip(values, self.values[self.peer], strict=True)]
            spread = f"({min(values):.4g} .. {max(values):.4g})"
            lines.append(
                f"{name:{width}}  {statistics.median(values):10.4g} {self.unit} {spread:24} x {statistics.median(ratios):.2f}"
            )
        return "\n".join([*lines, f"x: ratio to {self.peer!r} in the same round"])

    def summary(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "unit": self.unit,
            "peer": self.peer,
            "values": self.values,
            "median": {name: statistics.median(values) for name, values in self.values.items()},
            "ratio_to_peer": {
                name: statistics.median(v / p for v, p in zip(values, self.values[self.peer], strict=True))
                for name, values in self.values.items()
            },
        }


def in_turn(contenders: Mapping[str, Callable[[], float]], *, unit: str, peer: str, rounds: int) -> Figures:
    """Call each contender once a round, after one round that does not count; a contender returns its figure."""
    figures = Figures(unit, peer, {name: [] for name in contenders})
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            value = measure()
            if turn:
                figures.values[name].append(value)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"question": question, "command": command, "machine": machine(), **results}, indent=1))
