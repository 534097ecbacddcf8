"""Tables and figure of the study, from its runs.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Record = dict[str, Any]

RESAMPLES = 10_000
MIN_SEEDS = 5
"""The extremes of fewer differences hold the mean too seldom for any bootstrap interval to have its level."""
METRICS: dict[str, tuple[Callable[[Record], float], float, int]] = {
    "accuracy, %": (lambda record: record["test"]["top1"], 100, 2),
    "NLL": (lambda record: record["test"]["nll"], 1, 3),
    "ECE, %": (lambda record: record["test"]["ece"], 100, 2),
    "NLL, scaled": (lambda record: record["scaled"]["nll"], 1, 3),
    "ECE, scaled, %": (lambda record: record["scaled"]["ece"], 100, 2),
    "accuracy corrupted, %": (lambda record: mean(record["corrupted"].values()), 100, 2),
    "accuracy FGSM, %": (lambda record: record["fgsm"], 100, 2),
}
"""Name -> value of a run, factor, decimals."""


def mean(values: Iterable[float]) -> float:
    """Return the mean of some numbers."""
    return float(np.mean(list(values)))


def read_records(folder: Path) -> list[Record]:
    """Return the finished runs of a study. Exits with one line if there are none."""
    path = folder / "runs.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()[1:]]
    if not records:
        raise SystemExit(f"study.py: a report needs finished runs; found none in {path}. Run the study first")
    return records


def final_runs(records: list[Record], arm: str) -> dict[int, Record]:
    """Return an arm's final runs by seed."""
    return {record["seed"]: record for record in records if record["final"] and record["arm"] == arm}


def paired_differences(records: list[Record], arm: str, against: str, metric: str) -> NDArray[np.float64]:
    """Return the metric of `arm` minus that of `against`, one for each seed that both have, in the metric's unit."""
    value, factor, _ = METRICS[metric]
    ours, theirs = final_runs(records, arm), final_runs(records, against)
    return np.array(
        [factor * (value(ours[seed]) - value(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())]
    )


def bootstrap_interval(differences: NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of the mean of n differences by the expanded percentile bootstrap; None for n < MIN_SEEDS.

    The plain percentile interval is too narrow for few seeds: it holds the mean of 5 normal differences in 85% of all cases
    instead of 95%. Its level is raised until, for normal differences, it is about as wide as Student's. Source: Hesterberg 2015,
    What Teachers Should Know About the Bootstrap, arXiv 1411.5279.
    """
    n = len(differences)
    if n < MIN_SEEDS:
        return None
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))
    places = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(differences[places].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def difference(records: list[Record], arm: str, against: str, metric: str) -> str:
    """Return the mean paired difference and its interval, as text; in bold if the interval does not hold zero."""
    found, decimals = paired_differences(records, arm, against, metric), METRICS[metric][2]
    if arm == against or not len(found):
        return ""
    interval = bootstrap_interval(found)
    if interval is None:
        return f"{found.mean():+.{decimals}f}"
    text = f"{found.mean():+.{decimals}f} [{interval[0]:+.{decimals}f}, {interval[1]:+.{decimals}f}]"
    return text if interval[0] <= 0 <= interval[1] else f"**{text}**"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def cost_table(records: list[Record], planned: dict[str, int]) -> str:
    """Return what each arm took."""
    rows = []
    for arm, seeds in planned.items():
        found = list(final_runs(records, arm).values())
        if found:
            alpha = "" if found[0]["alpha"] is None else f"{found[0]['alpha']:g}"
            took = [f"{found[0][name]:,}" for name in ("updates", "rows", "decoded")]
            seconds = mean(record["cpu_seconds"] for record in found)
            rows.append([arm, f"{len(found)} of {seeds}", alpha, *took, f"{seconds:.0f}"])
    return markdown(["arm", "seeds", "alpha", "updates", "rows", "decoded images", "CPU seconds"], rows)


def mean_table(records: list[Record], arms: Iterable[str]) -> str:
    """Return the means of all metrics; each arm's over its own seeds."""
    rows = []
    for arm in arms:
        found = list(final_runs(records, arm).values())
        means = [f"{factor * mean(map(value, found)):.{digits}f}" for value, factor, digits in METRICS.values()]
        rows.append([arm, str(len(found)), *means])
    return markdown(["arm", "seeds", *METRICS], rows)


def selection_table(records: list[Record], planned: dict[str, int]) -> str:
    """Return the held-out accuracy by which alpha was chosen."""
    chosen = [record for record in records if not record["final"]]
    alphas = sorted({record["alpha"] for record in chosen})
    rows = []
    for arm in planned:
        found = [[r["held_out"]["top1"] for r in chosen if (r["arm"], r["alpha"]) == (arm, alpha)] for alpha in alphas]
        if any(found):
            rows.append([arm, *(f"{100 * mean(part):.2f} ({len(part)})" if part else "" for part in found)])
    return markdown(["arm", *(f"alpha {alpha:g}" for alpha in alphas)], rows)


def write_report(folder: Path, planned: dict[str, int], total: int) -> str:
    """Write table.md and figure.png into a study's folder; return the text.

    Args:
        folder: it holds runs.jsonl.
        planned: each arm and its number of seeds.
        total: the number of runs, those that choose alpha included.
    """
    records = read_records(folder)
    arms = [arm for arm in planned if final_runs(records, arm)]
    missing = [arm for arm in planned if arm not in arms]
    state = f"{len(records)} of {total} runs" + ("; interim" if len(records) < total else "")
    parts = [f"{state}.", cost_table(records, planned)]
    if missing:
        parts.append(f"No final run yet: {'; '.join(missing)}.")
    parts += ["Means over the seeds of each arm:", mean_table(records, arms)]
    for against in ("mixup", "no mixing"):
        if against in arms and len(arms) > 1:
            parts.append(f"Paired differences to {against}, with 95% bootstrap intervals from five seeds on:")
            rows = [
                [arm, str(len(paired_differences(records, arm, against, "accuracy, %")))]
                + [difference(records, arm, against, metric) for metric in METRICS]
                for arm in arms
                if arm != against
            ]
            parts.append(markdown(["arm", "pairs", *METRICS], rows))
    if any(not record["final"] for record in records):
        parts += [
            "Mean accuracy on the held-out images, %, by which alpha was chosen (number of seeds):",
            selection_table(records, planned),
        ]
    text = "\n\n".join(parts) + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    if "mixup" in arms:
        draw(records, arms, folder / "figure.png", state)
    return text


def draw(records: list[Record], arms: list[str], path: Path, state: str) -> None:
    """Draw the paired differences to mixup of some metrics, a point for each seed, the mean and its interval."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: drawing it needs matplotlib (pip install 'multimix-pipe[plot]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [arm for arm in arms if arm != "mixup"]
    metrics = ["accuracy, %", "NLL, scaled", "accuracy corrupted, %", "accuracy FGSM, %"]
    figure, axes = plt.subplots(1, len(metrics), figsize=(14, 1.6 + 0.32 * len(shown)), sharey=True, squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.axvline(0, color="0.6", linewidth=1)
        for place, arm in enumerate(shown):
            found = paired_differences(records, arm, "mixup", metric)
            if len(found):
                axis.plot(found, [place] * len(found), ".", color="0.7", markersize=5)
                axis.plot(found.mean(), place, "o", color="tab:blue")
                if interval := bootstrap_interval(found):
                    axis.plot(interval, [place, place], color="tab:blue")
        axis.set_title(metric, fontsize=10)
    axes[0][0].set_yticks(range(len(shown)), shown)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"Difference to mixup at paired seeds ({state})", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
