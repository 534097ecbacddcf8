"""Charts of an evaluation: the reliability diagram, and accuracy against severity. They need matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from multimix_pipe.cli.picture import COLOURS

FAINT = "#d8d8d8"


def draw_reliability(report: dict[str, Any], path: Path) -> None:
    """Draw accuracy against confidence, before and after temperature scaling, with the share of the samples below."""
    from matplotlib.figure import Figure

    forms = {name: bins for name, bins in report["reliability"].items() if bins is not None}
    figure = Figure(figsize=(4.8 * len(forms), 6), layout="constrained")
    axes = figure.subplots(2, len(forms), squeeze=False, sharex=True, height_ratios=[3, 1])
    for column, (name, bins) in enumerate(forms.items()):
        found, count = report["clean"][name], np.array(bins["count"])
        width = 1 / len(count)
        middle = (np.arange(len(count)) + 0.5) * width
        accuracy = np.array([np.nan if value is None else value for value in bins["accuracy"]])
        confidence = np.array([np.nan if value is None else value for value in bins["confidence"]])
        above, below = axes[:, column]
        above.plot([0, 1], [0, 1], color="#767676", linewidth=1, linestyle="--")
        above.bar(middle, accuracy, 0.92 * width, color=COLOURS[0], label="accuracy")
        above.plot(
            confidence,
            accuracy,
            color=COLOURS[1],
            marker="o",
            markersize=4,
            linestyle="",
            label="at the bin's mean confidence",
        )
        title = "as trained" if name == "raw" else f"temperature {report['temperature']:.2f}"
        above.set_title(f"{title}: ECE {found['ece']:.3f}, gap {found['signed_gap']:+.3f}")
        above.set_ylabel("accuracy")
        above.set_ylim(0, 1)
        above.legend(loc="upper left")
        below.bar(middle, count / count.sum(), 0.92 * width, color=COLOURS[0])
        below.set_ylabel("share of samples")
        below.set_xlabel("confidence")
        below.set_xlim(0, 1)
        for part in (above, below):
            part.grid(color=FAINT)
            part.set_axisbelow(True)
    figure.savefig(path, dpi=100)


def draw_corruptions(report: dict[str, Any], path: Path) -> None:
    """Draw the accuracy of each corruption against its severity; 0 is the clean images'."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for kind, style in (("corruptions", "-"), ("published", "--")):
        for name, severities in report.get(kind, {}).items():
            points = [(0, report["clean"]["raw"]["top1"])]
            points += sorted((int(severity), found["raw"]["top1"]) for severity, found in severities.items())
            label = name.replace("_", " ") + (" (published)" if kind == "published" else "")
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=label)
    axes.set_xlabel("severity")
    axes.set_ylabel("top-1 accuracy")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color=FAINT)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=100)
