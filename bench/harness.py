"""Shared by the benchmarks: measuring contenders in turn, loader rates, memory, the machine, JSON results and bar charts.

Machines are noisy, so contenders run in turn, round after round, and a figure is quoted as a ratio to another figure of the same
round. Medians over the rounds are printed with the minimum and maximum.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from multimix_pipe.runtime.machine import describe_machine, package_versions

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("torchvision", "timm", "spdl", "ffcv", "opencv-python", "opencv-python-headless")
GPU_PACKAGES = ("triton", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg")
"""Packages whose versions affect some figure, besides this package's own requirements."""
OWN_COLOUR, PEER_COLOUR, FAINT = "#1f77b4", "#e6781e", "#767676"


# the machine and its memory


def machine() -> dict[str, Any]:
    """Return what must be quoted with every figure: processor, cores, memory, GPU and package versions."""
    described = {"python": platform.python_version(), "cuda": torch.version.cuda, "date": time.strftime("%Y-%m-%d")}
    versions = {name: version for name, version in package_versions(*PEERS, *GPU_PACKAGES).items() if version}
    return {**describe_machine(), **described, "versions": versions}


def machine_line() -> str:
    """Describe the machine in one line, for a chart's subtitle."""
    about = describe_machine()
    gpu = f"{about['gpu']}, " if "gpu" in about else ""
    return f"{gpu}{about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB, {time.strftime('%Y-%m-%d')}"


def resident_memory() -> float:
    """Return the resident memory of this process in MB. Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def in_a_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Call `function`, which must be defined at a module's top level, in a fresh process and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# measuring


def ratio(values: list[float], peer: list[float]) -> float:
    """Return the median over the rounds of the ratio to `peer` in the same round."""
    return statistics.median(value / other for value, other in zip(values, peer, strict=True))


@dataclass
class Figures:
    """Measurements for one question: a list of values per contender, one value per round."""

    unit: str
    peer: str
    """The contender that ratios refer to."""
    values: dict[str, list[float]]
    cores: dict[str, list[float]]
    """Number of busy cores: CPU seconds of this process and its finished children per second of the measurement."""

    def ratio(self, name: str, peer: str | None = None) -> float:
        """Return the median over the rounds of a contender's ratio to `peer` (default: the peer of the table)."""
        return ratio(self.values[name], self.values[peer or self.peer])

    def compare(self, pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
        """Print and return the ratio of the first to the second contender of each pair."""
        ratios = {f"{name} / {peer}": self.ratio(name, peer) for name, peer in pairs}
        for pair, found in ratios.items():
            print(f"{pair}: {found:.3f}")
        return ratios

    def table(self) -> str:
        """Format one line per contender: median (minimum .. maximum), ratio to the peer, and number of busy cores."""
        width = max(map(len, self.values))
        lines = []
        for name, values in self.values.items():
            spread, cores = f"({min(values):.4g} .. {max(values):.4g})", statistics.median(self.cores[name])
            figure = f"{statistics.median(values):10.4g} {self.unit} {spread:24}"
            lines.append(f"{name:{width}}  {figure} x {self.ratio(name):.2f}  {cores:5.2f} cores")
        return "\n".join([*lines, f"x: ratio to {self.peer!r} in the same round"])

    def summary(self) -> dict[str, Any]:
        """Return the same figures as JSON-ready data."""
        medians = {name: statistics.median(values) for name, values in self.values.items()}
        return {**asdict(self), "median": medians, "ratio_to_peer": {name: self.ratio(name) for name in self.values}}


def in_turn(contenders: Mapping[str, Callable[[], float]], *, unit: str, peer: str, rounds: int) -> Figures:
    """Call each contender once per round, after an uncounted warm-up round; a contender returns its figure."""
    figures = Figures(unit, peer, {name: [] for name in contenders}, {name: [] for name in contenders})
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            before = os.times()
            start = time.perf_counter()  # the wall time of os.times has a resolution of 10 ms
            value = measure()
            elapsed = time.perf_counter() - start
            after = os.times()
            if turn:
                figures.values[name].append(value)
                figures.cores[name].append((sum(after[:4]) - sum(before[:4])) / max(elapsed, 0.01))
    return figures


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Return the wall time of one call in seconds; on a GPU, wait until the device has finished."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def forever(batches: Iterable[T]) -> Iterator[T]:
    """Yield a loader's batches, epoch after epoch."""
    while True:
        yield from batches


def rate(
    batches: Iterator[object], batch_size: int, steps: int, *, ahead: int = 5, device: torch.device | None = None
) -> Callable[[], float]:
    """Return a function that measures images/s over `steps` batches, after skipping `ahead` batches that may be prefetched."""

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)

    def measure() -> float:
        take(ahead)
        return steps * batch_size / seconds(lambda: take(steps), device)

    return measure


# arguments and results


def parser(description: str | None, *, shards: bool = False, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser for --json and --rounds, --shards if wanted, and --some-name for each `some_name=default`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    made.add_argument("--rounds", type=int, default=5, help="measurements of each contender; default: %(default)s")
    if shards:
        made.add_argument("--shards", type=Path, help="folder of shards with classes.json; default: generated photos")
    for name, default in defaults.items():
        made.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help="default: %(default)s"
        )
    return made


def report(description: str | None, results: Mapping[str, Any], path: Path | None) -> None:
    """Write results to `path`, unless it is None, with the question (the docstring's first line), the command, the machine."""
    if path is None:
        return
    asked = {"question": (description or "").splitlines()[0], "command": _own_command()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**asked, **results, "machine": machine()}, indent=1) + "\n")


def _own_command() -> str:
    """Return this program's command line without --json."""
    options = [option for at, option in enumerate(sys.argv[1:], 1) if "--json" not in (option, sys.argv[at - 1])]
    return shlex.join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *options])


# running several benchmarks

Part = tuple[float | None, Callable[..., dict[str, Any]]]
"""The time limit in seconds (None: no limit), and a function that takes `limit=` and returns figures."""


def run_parts(
    parts: Mapping[str, Part], results: dict[str, Any], path: Path, *, deadline: float | None = None, least: float = 20
) -> int:
    """Run each part, adding what it returns to `results` and writing them to `path`. Returns 1 if a part failed, else 0.

    A part is skipped if fewer than `least` seconds are left until `deadline`, which is a value of time.monotonic().
    """
    results["command"] = _own_command()
    lines, status = [], 0
    for name, (limit, run) in parts.items():
        start = time.monotonic()
        if deadline is not None and deadline - start < least:
            found: dict[str, Any] = {"skipped": f"only {max(deadline - start, 0):.0f} s were left"}
        else:
            found = run(limit=limit if deadline is None else min(limit or deadline, deadline - start))
            found["seconds"] = round(time.monotonic() - start, 1)
        results[name] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        status |= "failed" in found
        outcome = [found.get("skipped") or found.get("failed") or "done", found.get("counts"), found.get("not_passed")]
        lines.append(f"{name:28} {found.get('seconds', 0):6.1f} s  {'  '.join(str(part) for part in outcome if part)}")
    print("\n".join([f"\n== wrote {path}", *lines]))
    return status


def run_script(
    script: str, *options: object, limit: float | None, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run the benchmark `script`, a path relative to bench/; return its figures, and how it failed if it did.

    `variables` are added to its environment.
    """
    # local paths mean nothing to a reader of the results
    shown = [
        ("FOLDER" if option.is_dir() else option.name) if isinstance(option, Path) else option for option in options
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [str(ROOT / "bench" / script), *map(str, options), "--json", str(path)]
        failure = run_python(command, limit, variables)
        figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    figures.pop("machine", None)  # the run records it once
    settings = [f"{name}={value}" for name, value in (variables or {}).items()]
    return {**figures, "command": shlex.join([*settings, "python", f"bench/{script}", *map(str, shown)]), **failure}


def run_python(
    arguments: list[str], limit: float | None, variables: Mapping[str, str] | None = None, **options: Any
) -> dict[str, str]:
    """Run Python in the repository's root for at most `limit` seconds; return {} or {"failed": reason}.

    `variables` are added to the environment, `options` are passed to subprocess.run.
    """
    print(f"\n== {shlex.join(arguments)}", flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **(variables or {})}
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, timeout=limit, **options)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {limit:.0f} s"}
    return {"failed": f"exit status {done.returncode}"} if done.returncode else {}


# charts


@dataclass(frozen=True)
class Bar:
    """One contender in a bar chart."""

    label: str
    values: Sequence[float]
    """One value per round; empty if there is only a note to show."""
    note: str = ""
    """Printed after the median, or the reason why there is none."""
    own: bool = False
    """Whether the contender is this package."""


def draw_bars(path: Path, title: str, subtitles: Sequence[str], groups: Mapping[str, Sequence[Bar]], unit: str) -> None:
    """Draw a horizontal bar chart of medians, with whiskers from minimum to maximum, to the picture `path`.

    Args:
        path: the file to write; its extension selects the format.
        title: the chart's title.
        subtitles: lines below the title.
        groups: heading -> its bars, from top to bottom. Each heading is a panel; all panels share one axis.
        unit: the label of that axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = [len(bars) for bars in groups.values()]
    header = 0.6 + 0.23 * len(subtitles)  # inches
    height = header + 0.6 + 0.4 * len(groups) + 0.37 * sum(rows)
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - header / height), w_pad=0.15)
    figure = Figure(figsize=(12, height), layout=layout)
    figure.text(0.02, 1 - 0.15 / height, title, va="top", fontsize=16)
    figure.text(0.02, 1 - 0.5 / height, "\n".join(subtitles), va="top", fontsize=10, color=FAINT, linespacing=1.4)
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": rows})[:, 0]
    for axes, (heading, bars) in zip(panels, groups.items(), strict=True):
        axes.set_title(heading, loc="left", fontsize=11)
        for row, bar in enumerate(bars):
            _draw_bar(axes, row, bar)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.grid(axis="x", color="#d8d8d8")
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    highest = max((value for bars in groups.values() for bar in bars for value in bar.values), default=1.0)
    panels[-1].set_xlim(0, 1.15 * highest)
    panels[-1].xaxis.set_major_formatter("{x:,g}")
    panels[-1].set_xlabel(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_bar(axes: Any, row: int, bar: Bar) -> None:
    text, at = textwrap.shorten(bar.note, 100), 0.0
    if bar.values:
        middle, at = statistics.median(bar.values), max(bar.values)
        whiskers = [[middle - min(bar.values)], [at - middle]]
        colour = OWN_COLOUR if bar.own else PEER_COLOUR
        axes.barh(row, middle, height=0.65, color=colour, xerr=whiskers, error_kw={"capsize": 4, "ecolor": "#222222"})
        text = f"{middle:,.0f}  {text}" if middle >= 1000 else f"{middle:.3g}  {text}"
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # keeps the grid from running through the text
    axes.annotate(
        text.rstrip(), (at, row), xytext=(10, 0), textcoords="offset points", va="center", fontsize=9, bbox=paper
    )
