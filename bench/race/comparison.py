"""The results of a race as a table, JSON and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness import Bar, draw_bars, machine_line, ratio
from race.contenders import OURS
from race.runner import Row
from race.setting import Setting

HEADINGS = ("images/s", "lowest .. highest", "rows/s", "ratio", "CPU s/1,000", "memory")


@dataclass(frozen=True)
class Block:
    """The rows of one K, fastest first and those without figures last."""

    title: str
    rows: list[Row]
    reference: Row | None
    """The row that ratios refer to."""

    def ratio(self, row: Row) -> float | None:
        """Return the median of the ratios within a round; None if either row has no figures."""
        return None if self.reference is None or row.status != "ok" else ratio(row.rates, self.reference.rates)


def blocks_of(rows: Sequence[Row], peer: str | None) -> list[Block]:
    """Return a block per K. Ratios refer to `peer`, or to the faster of this package's backends."""
    blocks = []
    for k in dict.fromkeys(row.k for row in rows):
        group = sorted((row for row in rows if row.k == k), key=lambda row: -row.rate if row.status == "ok" else 1.0)
        wanted = OURS if peer is None else (peer,)
        reference = next((row for row in group if row.name in wanted and row.status == "ok"), None)
        blocks.append(Block("no mixing" if k is None else f"K = {k}", group, reference))
    return blocks


def table(rows: Sequence[Row], peer: str | None = None) -> str:
    """Format one block per K. A contender without figures shows the reason instead."""
    width = max(len(row.title) for row in rows) + 2
    layout = f"{{:{width}}}{{:>10}}  {{:>19}}{{:>10}}{{:>8}}{{:>13}}{{:>10}}"
    texts = []
    for block in blocks_of(rows, peer):
        lines = [layout.format(block.title, *HEADINGS)]
        for row in block.rows:
            if row.status != "ok":
                lines.append(f"{row.title:{width}}{row.status}: {row.message}")
                continue
            of = block.ratio(row)
            cells = [
                f"{row.rate:,.0f}",
                f"{min(row.rates):,.0f} .. {max(row.rates):,.0f}",
                f"{row.rate * (row.k or 1):,.0f}",
                "-" if of is None else f"{of:.2f}",
                f"{median(row.cpu_seconds):.2f}" if row.cpu_seconds else "-",
                f"{row.memory / 1e6:,.0f} MB" if row.memory else "-",
            ]
            lines.append(layout.format(row.title, *cells))
        if block.reference is not None:
            lines.append(f"ratio: relative to {block.reference.title} in the same round")
        texts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(texts)


def summary(rows: Sequence[Row], settings: Sequence[Setting], peer: str | None = None) -> dict[str, Any]:
    """Return JSON-ready data: the settings without the shards' names, and a dict per row."""
    setting = {**asdict(settings[0]), "shards": len(settings[0].shards), "k": [setting.k for setting in settings]}
    found = []
    for block in blocks_of(rows, peer):
        for row in block.rows:
            figures = {"median": row.rate, "ratio": block.ratio(row)} if row.status == "ok" else {}
            found.append({**asdict(row), **figures, "reference": block.reference and block.reference.name})
    return {"setting": setting, "unit": "decoded images/s", "rows": found}


def chart(path: Path, question: str, about: str, rows: Sequence[Row], peer: str | None = None) -> None:
    """Draw a bar chart with one panel per K to the picture `path`; `about` is a line about the data and settings."""

    def bar(block: Block, row: Row) -> Bar:
        of = block.ratio(row)
        note = f"{row.status}: {row.message}" if row.status != "ok" else "" if of is None else f"{of:.2f} x"
        return Bar(row.title, row.rates, note, own=row.name in OURS)

    groups = {block.title: [bar(block, row) for row in block.rows] for block in blocks_of(rows, peer)}
    draw_bars(path, question, [about, machine_line()], groups, "decoded images per second: median, minimum to maximum")
