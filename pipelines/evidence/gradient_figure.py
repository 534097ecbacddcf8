"""The figure of gradient_variance.py: the variance against K, for each network and stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINES = {
    "iid": ("K iid weights", "#1f77b4", "o-"),
    "stratified": ("K stratified weights", "#d62728", "s-"),
    "iid per batch": ("one set of K iid weights for the batch", "#7f7f7f", "v-"),
    "identical": ("K identical weights", "#bcbd22", "x-"),
    "partners each": ("another partner for each member", "#9467bd", "^-"),
    "crops each": ("another crop for each member", "#ff7f0e", "P-"),
    "fresh": ("K times as many pairs", "#2ca02c", "d-"),
}


def draw(parts: dict[str, Any], path: Path) -> None:
    """Draw the variances relative to K = 1 that `gradient_variance.py` has found; say so if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path.name}: drawing it needs matplotlib (pip install 'multimix-pipe[plot]')")
        return
    names = list(parts)
    figure = Figure(figsize=(13, 8), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3, sharex=True, sharey="row").flat, names, strict=False):
        found = parts[name]["arms"]
        for arm, (label, colour, style) in LINES.items():
            points = [(1, *found["K=1 per batch" if "batch" in arm else "K=1"]["total"])]
            points += [
                (int(key.split()[0][2:]), *at["total"]) for key, at in found.items() if key.split(" ", 1)[-1] == arm
            ]
            points = sorted(point for point in points if point[0] > 1 or "batch" in arm or point[1] == 1)
            if len(points) == 1:
                continue
            k, value, low, high = (list(column) for column in zip(*points, strict=True))
            axes.plot(k, value, style, color=colour, label=label, markersize=5)
            axes.fill_between(k, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(found["K=5 iid"]["total"][0], color="#1f77b4", linestyle=":", linewidth=1)
        axes.set(title=f"{name} (accuracy {parts[name]['accuracy']:.0%})", xscale="log", ylim=(0, 1.1))
        axes.set_xticks([1, 2, 3, 5, 10], ["1", "2", "3", "5", "10"])
        axes.set_xticks([], minor=True)
        axes.grid(color="#e0e0e0", which="both")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    figure.supylabel("variance of the gradient, relative to K = 1")
    figure.supxlabel("K (dotted: five iid weights)")
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")
