"""The results of a race as a table, JSON and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from harness import Bar, draw_bars, machine_line, ratio
from race.contenders import OURS
from race.runner import Row
from race.setting import Setting

HEADINGS = ("images/s", "lowest .. highest", "rows/s", "ratio", "CPU s/1,000", "memory")


def k_name(k: int | None) -> str:
    """Return e.g. "K = 5", or "no mixing" for None."""
    return "no mixing" if k is None else f"K = {k}"


def by_k(rows: Sequence[Row]) -> dict[int | None, list[Row]]:
    """Group the rows by K, fastest first and rows without figures last."""
    groups: dict[int | None, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.k, []).append(row)
    return {k: sorted(group, key=lambda row: -row.rate if row.status == "ok" else 1.0) for k, group in groups.items()}


def reference_of(group: Sequence[Row], peer: str | None) -> Row | None:
    """Return the row that ratios refer to: `peer`, or this package's faster backend; None if it has no figures."""
    wanted = OURS if peer is None else (peer,)
    return next((row for row in group if row.name in wanted and row.status == "ok"), None)


def ratio_of(row: Row, reference: Row | None) -> float | None:
    """Return the median of the ratios within a round; None if either row has no figures."""
    return None if reference is None or row.status != "ok" else ratio(row.rates, reference.rates)


def table(rows: Sequence[Row], peer: str | None = None) -> str:
    """Format one block per K. A contender without figures shows the reason instead."""
    width = max(len(row.title) for row in rows) + 2
    layout = f"{{:{width}}}{{:>10}}  {{:>19}}{{:>10}}{{:>8}}{{:>13}}{{:>10}}"
    blocks = []
    for k, group in by_k(rows).items():
        reference = reference_of(group, peer)
        lines = [layout.format(k_name(k), *HEADINGS)]
        for row in group:
            reason = f"{row.title:{width}}{row.status}: {row.message}"
            lines.append(layout.format(row.title, *_cells(row, reference)) if row.status == "ok" else reason)
        if reference is not None:
            lines.append(f"ratio: relative to {reference.title} in the same round")
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


def _cells(row: Row, reference: Row | None) -> list[str]:
    of = ratio_of(row, reference)
    return [
        f"{row.rate:,.0f}",
        f"{min(row.rates):,.0f} .. {max(row.rates):,.0f}",
        f"{row.rate * (row.k or 1):,.0f}",
        "-" if of is None else f"{of:.2f}",
        f"{median(row.cpu_seconds):.2f}" if row.cpu_seconds else "-",
        f"{row.memory / 1e6:,.0f} MB" if row.memory else "-",
    ]


def summary(rows: Sequence[Row], settings: Sequence[Setting], peer: str | None = None) -> dict[str, Any]:
    """Return JSON-ready data: the settings without the shards' names, and a dict per row."""
    groups = by_k(rows)
    references = {k: reference_of(group, peer) for k, group in groups.items()}
    shared = {key: value for key, value in settings[0].to_json().items() if key not in ("shards", "k")}
    return {
        "setting": {**shared, "shards": len(settings[0].shards), "k": [setting.k for setting in settings]},
        "unit": "decoded images/s",
        "reference": {k_name(k): reference.name for k, reference in references.items() if reference is not None},
        "rows": [_as_json(row, references[row.k]) for group in groups.values() for row in group],
    }


def _as_json(row: Row, reference: Row | None) -> dict[str, Any]:
    figures: Mapping[str, Any] = {}
    if row.status == "ok":
        figures = {
            "median": row.rate,
            "spread": [min(row.rates), max(row.rates)],
            "rows_a_second": row.rate * (row.k or 1),
            "ratio": ratio_of(row, reference),
        }
    return {**asdict(row), **figures}


def chart(path: Path, question: str, about: str, rows: Sequence[Row], peer: str | None = None) -> None:
    """Draw a bar chart with one panel per K to the picture `path`; `about` is a line about the data and settings."""
    groups = {}
    for k, group in by_k(rows).items():
        reference = reference_of(group, peer)
        groups[k_name(k)] = [_bar(row, ratio_of(row, reference)) for row in group]
    draw_bars(path, question, [about, machine_line()], groups, "decoded images per second: median, minimum to maximum")


def _bar(row: Row, of: float | None) -> Bar:
    if row.status != "ok":
        return Bar(row.title, (), f"{row.status}: {row.message}")
    return Bar(row.title, row.rates, "" if of is None else f"{of:.2f} x", own=row.name in OURS)
